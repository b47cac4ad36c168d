"""Heads draw the elements of an event from a network's output, and score them."""

from __future__ import annotations

from inspect import signature

import torch

from fastgen.generate.heads.base import Drawn, DrawOptions, Head
from fastgen.generate.heads.bernoulli import Bernoulli
from fastgen.generate.heads.categorical import Categorical
from fastgen.generate.heads.discretized_logistic_mixture import DiscretizedLogisticMixture
from fastgen.generate.heads.gaussian import Gaussian

__all__ = [
    "Bernoulli",
    "Categorical",
    "DiscretizedLogisticMixture",
    "DrawOptions",
    "Drawn",
    "Gaussian",
    "Head",
    "from_config",
    "to_config",
]

_HEADS = {head.kind: head for head in (Bernoulli, Categorical, DiscretizedLogisticMixture, Gaussian)}


def to_config(head: Head) -> dict:
    """Returns the head as JSON takes it; ``from_config`` makes the same head of it."""
    return {"kind": head.kind} | head.config()


def from_config(config: dict) -> Head:
    """Returns the head of a ``to_config``; raises ValueError for an unknown kind, or arguments it does not take."""
    kind = config.get("kind") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in _HEADS:
        raise ValueError(f"kind must be one of {', '.join(_HEADS)}, got {kind!r:.100}")
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
