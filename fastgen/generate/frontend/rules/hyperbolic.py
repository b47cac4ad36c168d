"""Hyperbolic functions and their inverses.

They are made of exponentials and logarithms, so that nothing cancels or overflows before the result does.
"""

from __future__ import annotations

import math

import torch

from fastgen.generate.frontend.rules.elementwise import add, constant, copysign, mul, sub
from fastgen.generate.frontend.rules.registry import register_rule
from fastgen.generate.ir.graph import Graph, Value

aten = torch.ops.aten
_LARGE = 20.0
"""From here on exp(-2 x) is no part of the result in float32."""


def _half_exp(graph: Graph, x: Value) -> Value:
    """Returns exp(x) / 2 as a square, which overflows no earlier than the result."""
    root = graph.map("exp", mul(graph, x, 0.5))
    return graph.map("mul", mul(graph, root, 0.5), root)


def _beyond(graph: Graph, size: Value, large: Value, small: Value) -> Value:
    return graph.map("where", graph.map("lt", constant(_LARGE), size), large, small)


@register_rule(aten.sinh.default)
def sinh(graph: Graph, x: Value) -> Value:
    """(e + e / (e + 1)) / 2 of e = exp(x) - 1, where x is small."""
    size = graph.map("abs", x)
    e = graph.map("expm1", size)
    small = mul(graph, graph.map("add", e, graph.map("div", e, add(graph, e, 1.0))), 0.5)
    return copysign(graph, _beyond(graph, size, _half_exp(graph, size), small), x)


@register_rule(aten.cosh.default)
def cosh(graph: Graph, x: Value) -> Value:
    size = graph.map("abs", x)
    e = graph.map("exp", size)
    small = mul(graph, graph.map("add", e, graph.map("reciprocal", e)), 0.5)
    return _beyond(graph, size, _half_exp(graph, size), small)


@register_rule(aten.asinh.default)
def asinh(graph: Graph, x: Value) -> Value:
    """log(1 + x + x^2 / (1 + sqrt(1 + x^2))), where x is small; log(2 x) else."""
    size = graph.map("abs", x)
    square = graph.map("mul", size, size)
    rest = graph.map("div", square, add(graph, graph.map("sqrt", add(graph, square, 1.0)), 1.0))
    small = graph.map("log1p", graph.map("add", size, rest))
    return copysign(graph, _beyond_squares(graph, size, small), x)


@register_rule(aten.acosh.default)
def acosh(graph: Graph, x: Value) -> Value:
    """log(1 + t + sqrt(t) sqrt(t + 2)) of t = x - 1, where x is small; log(2 x) else."""
    t = sub(graph, x, 1.0)
    root = graph.map("mul", graph.map("sqrt", t), graph.map("sqrt", add(graph, t, 2.0)))
    return _beyond_squares(graph, x, graph.map("log1p", graph.map("add", t, root)))


def _beyond_squares(graph: Graph, size: Value, small: Value) -> Value:
    large = add(graph, graph.map("log", size), math.log(2))
    return graph.map("where", graph.map("lt", constant(1e8), size), large, small)


@register_rule(aten.atanh.default)
def atanh(graph: Graph, x: Value) -> Value:
    """log(1 + 2 x / (1 - x)) / 2."""
    size = graph.map("abs", x)
    ratio = graph.map("div", mul(graph, size, 2.0), sub(graph, 1.0, size))
    return copysign(graph, mul(graph, graph.map("log1p", ratio), 0.5), x)
