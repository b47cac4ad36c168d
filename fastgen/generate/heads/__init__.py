"""Heads draw the elements of an event from a network's output, and score them."""

from __future__ import annotations

import torch

from fastgen.generate.heads.base import Drawn, Head
from fastgen.generate.heads.bernoulli import Bernoulli
from fastgen.generate.heads.categorical import Categorical
from fastgen.generate.heads.discretized_logistic_mixture import DiscretizedLogisticMixture
from fastgen.generate.heads.gaussian import Gaussian

__all__ = [
    "Bernoulli",
    "Categorical",
    "DiscretizedLogisticMixture",
    "Drawn",
    "Gaussian",
    "Head",
    "from_config",
    "to_config",
]

_HEADS = {head.kind: head for head in (Bernoulli, Categorical, DiscretizedLogisticMixture, Gaussian)}


def to_config(head: Head) -> dict:
    """The head as JSON takes it; ``from_config`` makes the same head of it."""
    return {"kind": head.kind} | head.config()


def from_config(config: dict) -> Head:
    """The head of a ``to_config``; raises ValueError for an unknown kind."""
    arguments = dict(config)
    kind = arguments.pop("kind", None)
    if kind not in _HEADS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(_HEADS)}")
    if isinstance(arguments.get("to_input"), list):
        arguments["to_input"] = torch.tensor(arguments["to_input"], dtype=torch.float32)
    return _HEADS[kind](**arguments)
