"""One rule for each ATen operator: how its result's elements depend on the elements of its operands.

A rule takes the graph and the operator's arguments, in which tensors that depend on the input are ``Value`` (ids) and
others ``Constant``, and returns a ``Value`` (or a tuple of them, or a ``Constant``). ``register_rule`` adds one.
"""

from __future__ import annotations

from fastgen.generate.frontend.rules import (
    activation,
    attention,
    bits,
    contraction,
    cumulative,
    elementwise,
    hyperbolic,
    movement,
    ordering,
    pooling,
    recurrent,
    reduction,
    sinks,
    softmax_by_hand,
)
from fastgen.generate.frontend.rules.registry import RULES, register_rule

__all__ = [
    "RULES",
    "activation",
    "attention",
    "bits",
    "contraction",
    "cumulative",
    "elementwise",
    "hyperbolic",
    "movement",
    "ordering",
    "pooling",
    "recurrent",
    "reduction",
    "register_rule",
    "sinks",
    "softmax_by_hand",
]
