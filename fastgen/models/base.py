"""The base of every model: a module with a frozen config, saved as ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

from fastgen.fields import check_fields, one_line, parse_object
from fastgen.models.context import Condition, Context
from fastgen.models.saved_weights import built, read_weights, write_weights

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


@dataclass(frozen=True)
class ModelConfig:
    """``event_shape`` is one sample's shape; ``levels`` is the number of values an element takes."""

    event_shape: tuple[int, ...]
    levels: int = 256

    def __post_init__(self) -> None:
        for field in fields(self):
            if isinstance(getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        if not self.event_shape or not all(isinstance(size, Integral) and size > 0 for size in self.event_shape):
            raise ValueError(f"event_shape must be positive integers, got {self.event_shape}")
        self.check_levels()

    def check_levels(self) -> None:
        self.at_least(2, "levels")

    def at_least(self, lowest: int, *names: str) -> None:
        """Raises ValueError naming the first of the fields that is below ``lowest``."""
        for name in names:
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {getattr(self, name)}")

    def one_of(self, name: str, allowed: Iterable[str]) -> None:
        """Raises ValueError naming what is allowed where the field is something else."""
        if getattr(self, name) not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {getattr(self, name)!r}")

    def check_dropout(self, name: str = "dropout") -> None:
        if not 0 <= getattr(self, name) < 1:
            raise ValueError(f"{name} must be at least 0 and less than 1, got {getattr(self, name)}")

    def check_image(self) -> None:
        if len(self.event_shape) != 3:
            raise ValueError(f"event_shape must be (channels, height, width), got {self.event_shape}")

    @classmethod
    def from_fields(cls, values: dict[str, Any]) -> Self:
        """The config with these fields; raises ValueError naming what is unknown, what there is, and a wrong type."""
        return cls(**check_fields(cls, values))


class Model(nn.Module):
    """A module that knows its name, its config and how to be saved.

    A subclass has ``Config`` (a ``ModelConfig``), is registered under a name, and takes the config as its only
    argument. A base class of models says of its family what training has to know.

    Attributes:
        family: the family's name, by which ``list_models`` finds its models.
        real_numbers: whether ``levels=0`` is allowed, for data that are real numbers.
        baseline: the trivial model that the likelihood is compared with, a histogram of levels, or a Gaussian.
    """

    Config: ClassVar[type[ModelConfig]]
    name: ClassVar[str]
    family: ClassVar[str]
    real_numbers: ClassVar[bool]
    baseline: ClassVar[Literal["histogram", "gaussian"]]
    presets: ClassVar[dict[str, dict[str, Any]]]

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = type(self).Config() if config is None else config  # type: ignore[call-arg]  # all have a default

    @property
    def conditions(self) -> dict[str, Condition]:
        """The parts of ``context``, by name; empty for an unconditional model."""
        return {}

    def example_context(self, n: int = 2, event_shape: tuple[int, ...] | None = None) -> Context:
        """A context of zeros that ``forward`` takes for n samples of a shape (the config's); None if unconditional."""
        sizes = self.context_sizes(event_shape)
        values = {name: condition.example(n, sizes[name]) for name, condition in self.conditions.items()}
        return next(iter(values.values())) if len(values) == 1 else values or None

    def context_sizes(self, event_shape: tuple[int, ...] | None = None) -> dict[str, tuple[int, ...]]:
        """The shape, without the batch, of every tensor of a context that goes with an event shape (the config's)."""
        # a model with a free size has its own context_sizes
        return {name: condition.shape for name, condition in self.conditions.items()}  # type: ignore[misc]

    def score(self, x: Tensor, context: Context = None) -> Tensor:
        """Returns the log-probability [N] of held-out data in nats, or the model's lower bound of it."""
        raise NotImplementedError

    def loss(self, batch: Tensor | tuple[Tensor, Context]) -> Tensor:
        """Mean negative ``score`` in nats of a batch: x, or (x, context)."""
        x, context = batch_parts(batch)
        return -self.score(x, context).mean()

    def estimates(self) -> tuple[str, ...]:
        """Returns, in words, what is a bound or an estimate in ``score`` in eval mode; empty where all is exact."""
        return ()

    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Sets the parameters that the first batch of training decides, before the first step; most models have none.

        Args:
            x, context: a batch, as ``score`` takes it.
        """

    def refresh(self) -> None:
        """Computes anew what the model keeps of its weights in eval mode, after they were changed there.

        ``eval()`` does so too.
        """

    def progress(self) -> dict[str, float]:
        """Returns numbers of the latest training step that are shown and logged beside the loss, by name."""
        return {}

    def bits_per_dim(self, x: Tensor, context: Context = None) -> Tensor:
        """Negative ``score`` in bits per element, [N]."""
        return -self.score(x, context) / (math.log(2) * math.prod(x.shape[1:]))

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes ``config.json`` and ``model.safetensors`` into the directory, which is made if need be."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        description = {"model": self.name, "config": asdict(self.config)}
        text = json.dumps(description, indent=2)
        (directory / CONFIG_FILE).write_text(text + "\n")
        write_weights(directory / WEIGHTS_FILE, self.state_dict(), json.loads(text))

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """The model that ``save_pretrained`` wrote, in eval mode.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, the directory holds another model, or the weights are not the config's.
        """
        name, config = read_config(directory)
        if name != cls.name:
            raise ValueError(f"{directory} must hold a model {cls.name!r}, got {name!r}")
        path = Path(directory) / WEIGHTS_FILE
        try:
            parsed = cls.Config.from_fields(config)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{Path(directory) / CONFIG_FILE}: {one_line(error)}") from error
        weights = read_weights(path, {"model": name, "config": config})
        return built(lambda: cls(parsed), weights, path).eval()


def read_config(directory: str | Path) -> tuple[str, dict[str, Any]]:
    """The model's name and its config from ``config.json``; raises FileNotFoundError or ValueError."""
    path = Path(directory) / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    description = parse_object(path.read_bytes(), str(path))
    name, config = description.get("model"), description.get("config")
    if not isinstance(name, str) or not isinstance(config, dict):
        raise ValueError(f"{path} is not the config of a fastgen model")
    return name, config


def batch_parts(batch: Tensor | Iterable) -> tuple[Tensor, Context]:
    """The data and the context from a batch: the data alone, or the pair."""
    if isinstance(batch, Tensor):
        return batch, None
    x, context = batch
    return x, context
