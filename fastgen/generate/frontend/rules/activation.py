"""Activations."""

from __future__ import annotations

import math

import torch

from fastgen.generate.frontend.rules.elementwise import add, clamp, constant, mul
from fastgen.generate.frontend.rules.registry import register_rule
from fastgen.generate.ir.graph import Constant, Graph, Value, derive

aten = torch.ops.aten


@register_rule(aten.elu.default)
def elu(graph: Graph, x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    if input_scale != 1:
        positive, negative = (
            mul(graph, x, scale),
            mul(graph, graph.map("expm1", mul(graph, x, input_scale)), alpha * scale),
        )
        return graph.map("where", graph.map("lt", constant(0.0), x), positive, negative)
    y = graph.map("elu", x, x=float(alpha))
    return y if scale == 1 else mul(graph, y, scale)


@register_rule(aten.selu.default)
def selu(graph: Graph, x: Value) -> Value:
    return mul(graph, graph.map("elu", x, x=1.6732632423543772), 1.0507009873554805)


@register_rule(aten.celu.default)
def celu(graph: Graph, x: Value, alpha: float = 1.0) -> Value:
    return elu(graph, x, alpha, 1.0, 1.0 / alpha)


@register_rule(aten.leaky_relu.default)
def leaky_relu(graph: Graph, x: Value, slope: float = 0.01) -> Value:
    return graph.map("leaky_relu", x, x=float(slope))


@register_rule(aten.prelu.default)
def prelu(graph: Graph, x: Value, weight: Constant) -> Value:
    if weight.tensor.numel() > 1:
        weight = derive(lambda t: t.reshape(1, -1, *[1] * (x.ids.dim() - 2)), weight)
    return graph.map("where", graph.map("lt", constant(0.0), x), x, graph.map("mul", x, weight))


@register_rule(aten.gelu.default)
def gelu(graph: Graph, x: Value, approximate: str = "none") -> Value:
    if approximate == "none":
        return graph.map("gelu", x)
    cubic = graph.map("mul", graph.map("mul", x, x), x)
    inner = mul(graph, graph.map("add", x, mul(graph, cubic, 0.044715)), math.sqrt(2 / math.pi))
    return graph.map("mul", mul(graph, x, 0.5), add(graph, graph.map("tanh", inner), 1.0))


@register_rule(aten.silu.default)
def silu(graph: Graph, x: Value) -> Value:
    return graph.map("mul", x, graph.map("sigmoid", x))


@register_rule(aten.mish.default)
def mish(graph: Graph, x: Value) -> Value:
    return graph.map("mul", x, graph.map("tanh", softplus(graph, x)))


@register_rule(aten.softplus.default)
def softplus(graph: Graph, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    return graph.map("softplus", x, x=float(beta), y=float(threshold))


@register_rule(aten.log_sigmoid.default)
def log_sigmoid(graph: Graph, x: Value) -> Value:
    return graph.map("neg", graph.map("softplus", graph.map("neg", x), x=1.0, y=20.0))


@register_rule(aten.rrelu.default)
def rrelu(graph: Graph, x: Value, lower: float = 1 / 8, upper: float = 1 / 3, *_) -> Value:
    """In eval mode: the mean of the slopes."""
    return leaky_relu(graph, x, (lower + upper) / 2)


@register_rule(aten.threshold.default)
def threshold(graph: Graph, x: Value, least: float, value: float) -> Value:
    return graph.map("where", graph.map("le", x, constant(least)), constant(value), x)


@register_rule(aten.hardshrink.default)
def hardshrink(graph: Graph, x: Value, width: float = 0.5) -> Value:
    return graph.map("where", graph.map("le", graph.map("abs", x), constant(width)), constant(0.0), x)


@register_rule(aten.softshrink.default)
def softshrink(graph: Graph, x: Value, width: float = 0.5) -> Value:
    return graph.map("sub", x, clamp(graph, x, -width, width))


@register_rule(aten.relu6.default)
def relu6(graph: Graph, x: Value) -> Value:
    return clamp(graph, x, 0.0, 6.0)


@register_rule(aten.hardsigmoid.default)
def hardsigmoid(graph: Graph, x: Value) -> Value:
    return graph.map("div", relu6(graph, add(graph, x, 3.0)), constant(6.0))


@register_rule(aten.hardswish.default)
def hardswish(graph: Graph, x: Value) -> Value:
    return graph.map("div", graph.map("mul", x, relu6(graph, add(graph, x, 3.0))), constant(6.0))


@register_rule(aten.glu.default)
def glu(graph: Graph, x: Value, dim: int = -1) -> Value:
    a, b = x.ids.chunk(2, dim)
    return graph.map("mul", Value(a), graph.map("sigmoid", Value(b)))
