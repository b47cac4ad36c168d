"""Every model by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastgen.models.base import Model, read_config

_MODELS: dict[str, type[Model]] = {}


def register(name: str, presets: dict[str, dict[str, Any]]) -> Callable[[type[Model]], type[Model]]:
    """Class decorator: the model is found under ``name``; a preset says what it changes in the config's defaults."""

    def add(model: type[Model]) -> type[Model]:
        if name in _MODELS:
            raise ValueError(f"name must be new, got {name!r}, which is {_MODELS[name].__qualname__}")
        model.name, model.presets = name, {"paper": {}} | presets
        _MODELS[name] = model
        return model

    return add


def list_models(family: str | None = None) -> list[str]:
    """The names of all models, or of a family's; raises ValueError for an unknown family."""
    families = sorted({model.family for model in _MODELS.values()})
    if family is not None and family not in families:
        raise ValueError(f"family must be one of {', '.join(families)}, got {family!r}")
    return sorted(name for name, model in _MODELS.items() if family in (None, model.family))


def model_class(name: str) -> type[Model]:
    """The class of a model; raises ValueError for an unknown name."""
    if name not in _MODELS:
        raise ValueError(f"name must be one of {', '.join(list_models())}, got {name!r}")
    return _MODELS[name]


def create_model(name: str, preset: str = "paper", **config: Any) -> Model:
    """``create_model("pixelcnn_pp", preset="tiny", event_shape=(1, 8, 8), levels=17)``: a new model, in training mode.

    Args:
        name: one of ``list_models()``.
        preset: "paper" (the default config), "tiny" (trains in about a minute on two CPU cores) or another one.
        config: fields of the model's config that differ from the preset.

    Raises:
        ValueError: an unknown name, preset or field, or a field out of range; the message lists what there is.
    """
    model = model_class(name)
    if preset not in model.presets:
        raise ValueError(f"preset must be one of {', '.join(model.presets)} for {name!r}, got {preset!r}")
    return model(model.Config.from_fields(model.presets[preset] | config))


def from_pretrained(directory: str | Path) -> Model:
    """The model in a directory that ``save_pretrained`` wrote, whichever it is, in eval mode."""
    name, _ = read_config(directory)
    return model_class(name).from_pretrained(directory)
