"""Heads draw the elements of an event from a network's output, and score them."""

from __future__ import annotations

from inspect import signature

import torch

from fastgen.generate.heads.base import Drawn, DrawOptions, Head
from fastgen.generate.heads.bernoulli import Bernoulli
from fastgen.generate.heads.bivariate_gaussian_mixture import BivariateGaussianMixture
from fastgen.generate.heads.categorical import Categorical
from fastgen.generate.heads.composite import Composite
from fastgen.generate.heads.custom import Custom
from fastgen.generate.heads.discretized_logistic_mixture import DiscretizedLogisticMixture
from fastgen.generate.heads.gaussian import Gaussian
from fastgen.generate.heads.logistic_mixture import LogisticMixture

__all__ = [
    "Bernoulli",
    "BivariateGaussianMixture",
    "Categorical",
    "Composite",
    "Custom",
    "DiscretizedLogisticMixture",
    "DrawOptions",
    "Drawn",
    "Gaussian",
    "Head",
    "LogisticMixture",
    "from_config",
    "to_config",
]

_HEADS = {
    head.kind: head
    for head in (
        Bernoulli,
        BivariateGaussianMixture,
        Categorical,
        DiscretizedLogisticMixture,
        Gaussian,
        LogisticMixture,
    )
}
_KINDS = (*_HEADS, Composite.kind, Custom.kind)


def to_config(head: Head) -> dict:
    """Returns the head (a ``Custom`` one without its functions) as JSON takes it, for ``from_config``."""
    return {"kind": head.kind} | head.config()


def from_config(config: dict, custom: Head | None = None) -> Head:
    """Returns the head of a ``to_config``.

    Args:
        config: of which head.
        custom: the head that a config of a ``Custom`` head stands for, since functions have no config; None: for none.

    Raises:
        ValueError: an unknown kind, or arguments it does not take; ``custom`` is missing, or another, or of no use.
    """
    kind = config.get("kind") if isinstance(config, dict) else None
    if kind == Custom.kind:
        return _custom(config, custom)
    if custom is not None:
        raise ValueError(f"head must be None where the file holds the head ({kind!r:.100}), got {custom!r:.100}")
    if kind == Composite.kind:
        return _composite(config)
    if not isinstance(kind, str) or kind not in _HEADS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r:.100}")
    arguments = {name: value for name, value in config.items() if name != "kind"}
    taken = signature(_HEADS[kind]).parameters.values()
    needed = {p.name for p in taken if p.default is p.empty}
    if odd := (arguments.keys() - {p.name for p in taken}) | (needed - arguments.keys()):
        raise ValueError(f"a {kind} head's arguments are missing or not known: {', '.join(sorted(odd)):.200}")
    if isinstance(table := arguments.get("to_input"), list):
        if not all(type(value) in (int, float) for value in table):
            raise ValueError("to_input must be a name or a list of numbers")
        arguments["to_input"] = torch.tensor(table, dtype=torch.float32)
    return _HEADS[kind](**arguments)


def _composite(config: dict) -> Composite:
    parts = config.get("parts")
    if config.keys() != {"kind", "parts"} or not isinstance(parts, list):
        raise ValueError(f"a composite head's config must have a list of parts, got {config!r:.100}")
    kinds = [part.get("kind") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(kind, str) and kind in _HEADS for kind in kinds):
        raise ValueError(f"parts must be of the kinds {', '.join(_HEADS)}, got {parts!r:.100}")
    return Composite(*(from_config(part) for part in parts))


def _custom(config: dict, custom: Head | None) -> Head:
    if custom is None:
        raise ValueError("head must be the Custom head that the sampler was made with: a file holds no functions")
    if not isinstance(custom, Custom):
        raise ValueError(f"head must be a Custom head, got {custom!r:.100}")
    if custom.to_input_name is None:
        custom = custom.reading(config["to_input"]) if config.get("to_input") in ("index", "float") else custom
    if to_config(custom) != config:
        raise ValueError(f"head must be the Custom head of the file, {config!r:.300}, got {to_config(custom)!r:.300}")
    return custom
