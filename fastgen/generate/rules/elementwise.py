"""Elementwise operators."""

from __future__ import annotations

import math

import torch

from fastgen.generate.errors import UnsupportedOperator
from fastgen.generate.graph import Constant, Graph, Value, derive
from fastgen.generate.rules.registry import register_rule

aten = torch.ops.aten
Operand = Value | Constant | float

for _operator, _opcode in {
    aten.neg: "neg", aten.abs: "abs", aten.exp: "exp", aten.log: "log", aten.log1p: "log1p", aten.expm1: "expm1",
    aten.sqrt: "sqrt", aten.rsqrt: "rsqrt", aten.reciprocal: "reciprocal", aten.tanh: "tanh", aten.sigmoid: "sigmoid",
    aten.erf: "erf", aten.sin: "sin", aten.cos: "cos", aten.floor: "floor", aten.ceil: "ceil", aten.round: "round",
    aten.sign: "sign", aten.relu: "relu",
}.items():  # fmt: skip
    register_rule(_operator.default)(lambda graph, x, _code=_opcode: graph.map(_code, x))


def constant(operand: Operand) -> Value | Constant:
    return operand if isinstance(operand, (Value, Constant)) else Constant.literal(float(operand))


def scalar(operand: Operand) -> float | None:
    """The number, if the operand is one (a literal, which no parameter changes)."""
    if isinstance(operand, Constant):
        return float(operand.tensor) if operand.tensor.numel() == 1 and not operand.recipe.sources else None
    return None if isinstance(operand, Value) else float(operand)


def add(graph: Graph, a: Operand, b: Operand, alpha: float = 1) -> Value:
    if alpha != 1:
        b = mul(graph, b, alpha) if isinstance(b, Value) else derive(lambda t: t * alpha, constant(b))
    if not isinstance(a, Value):
        a, b = b, a
    number = scalar(b)
    if number is not None:
        return graph.map("addc", a, x=number) if number else a
    if isinstance(b, Constant) and not b.tensor.any() and not b.recipe.sources:
        return Value(a.ids.expand(torch.broadcast_shapes(a.shape, b.tensor.shape)))
    return graph.map("add", a, b)


def mul(graph: Graph, a: Operand, b: Operand) -> Value:
    if not isinstance(a, Value):
        a, b = b, a
    number = scalar(b)
    if number is not None:
        return Value(torch.zeros_like(a.ids)) if number == 0 else graph.map("mulc", a, x=number)
    if isinstance(b, Constant) and bool((b.tensor == 0).any()):
        mask = b.tensor != 0
        graph.assume(b.recipe, lambda t: torch.equal(t != 0, mask))
        kept = Value(torch.where(mask, a.ids, 0))  # what a zero multiplies is not used
        if bool((b.tensor[mask] == 1).all()):
            graph.assume(b.recipe, lambda t: bool((t[mask] == 1).all()))
            return kept
        return Value(torch.where(mask, graph.map("mul", kept, b).ids, 0))
    return graph.map("mul", a, b)


def where(graph: Graph, condition: Value | Constant, a: Operand, b: Operand) -> Value:
    a, b = constant(a), constant(b)
    if isinstance(condition, Value):
        return graph.map("where", condition, a, b)
    mask = condition.tensor.bool()
    graph.assume(condition.recipe, lambda t: torch.equal(t.bool(), mask))
    a, b = (o.ids if isinstance(o, Value) else graph.constant_ids(o) for o in (a, b))
    return Value(torch.where(mask, a, b))


register_rule(aten.add.Tensor, aten.add.Scalar)(add)
register_rule(aten.mul.Tensor, aten.mul.Scalar)(mul)
register_rule(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)(where)


@register_rule(aten.sub.Tensor, aten.sub.Scalar)
def sub(graph: Graph, a: Operand, b: Operand, alpha: float = 1) -> Value:
    if alpha == 1 and isinstance(b, Value):
        return graph.map("sub", constant(a), b)
    return add(graph, a, b, -alpha)


@register_rule(aten.rsub.Scalar, aten.rsub.Tensor)
def rsub(graph: Graph, a: Operand, b: Operand, alpha: float = 1) -> Value:
    return sub(graph, b, a, alpha)


@register_rule(aten.div.Tensor, aten.div.Scalar)
def div(graph: Graph, a: Operand, b: Operand) -> Value:
    return graph.map("div", constant(a), constant(b))


@register_rule(aten.div.Tensor_mode, aten.div.Scalar_mode)
def div_mode(graph: Graph, a: Operand, b: Operand, rounding_mode=None) -> Value:
    quotient = div(graph, a, b)
    if rounding_mode == "floor":
        return graph.map("floor", quotient)
    return quotient if rounding_mode is None else _truncate(graph, quotient)


def _truncate(graph: Graph, x: Value) -> Value:
    return graph.map("mul", graph.map("sign", x), graph.map("floor", graph.map("abs", x)))


@register_rule(aten.floor_divide.default)
def floor_divide(graph: Graph, a: Operand, b: Operand) -> Value:
    return graph.map("floor", div(graph, a, b))


register_rule(aten.trunc.default)(_truncate)


@register_rule(aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.pow.Scalar)
def power(graph: Graph, a: Operand, b: Operand) -> Value:
    exponent = scalar(b)
    if exponent == 2:
        return graph.map("mul", a, a)
    if exponent == 0.5:
        return graph.map("sqrt", a)
    return graph.map("pow", constant(a), constant(b))


@register_rule(aten.square.default)
def square(graph: Graph, x: Value) -> Value:
    return graph.map("mul", x, x)


for _name, _opcode, _swap in (
    ("lt", "lt", False), ("le", "le", False), ("gt", "lt", True), ("ge", "le", True), ("eq", "eq", False),
    ("ne", "ne", False),
):  # fmt: skip

    def _compare(graph, a, b, _code=_opcode, _swap=_swap):
        a, b = constant(a), constant(b)
        return graph.map(_code, *((b, a) if _swap else (a, b)))

    register_rule(getattr(aten, _name).Tensor, getattr(aten, _name).Scalar)(_compare)


@register_rule(aten.maximum.default)
def maximum(graph: Graph, a: Operand, b: Operand) -> Value:
    return graph.map("max", constant(a), constant(b))


@register_rule(aten.minimum.default)
def minimum(graph: Graph, a: Operand, b: Operand) -> Value:
    return graph.map("min", constant(a), constant(b))


@register_rule(aten.clamp.default, aten.hardtanh.default, aten.clamp.Tensor)
def clamp(graph: Graph, x: Value, low=None, high=None, *, operator=None) -> Value:
    if operator is aten.hardtanh.default:
        low, high = -1.0 if low is None else low, 1.0 if high is None else high
    if isinstance(low, (Value, Constant)) or isinstance(high, (Value, Constant)):
        x = x if low is None else maximum(graph, x, low)
        return x if high is None else minimum(graph, x, high)
    return graph.map(
        "clamp", x, x=-math.inf if low is None else float(low), y=math.inf if high is None else float(high)
    )


@register_rule(aten.clamp_min.default)
def clamp_min(graph: Graph, x: Value, low) -> Value:
    return clamp(graph, x, low)


@register_rule(aten.clamp_max.default)
def clamp_max(graph: Graph, x: Value, high) -> Value:
    return clamp(graph, x, None, high)


@register_rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(graph: Graph, x: Value, mask: Value | Constant, value: Operand) -> Value:
    return where(graph, mask, constant(value), x)


@register_rule(aten.logical_not.default, aten.bitwise_not.default)
def logical_not(graph: Graph, x: Value) -> Value:
    return graph.map("eq", x, constant(0.0))


@register_rule(aten.logical_and.default, aten.bitwise_and.Tensor)
def logical_and(graph: Graph, a: Operand, b: Operand) -> Value:
    return graph.map("mul", *(graph.map("ne", o, constant(0.0)) if isinstance(o, Value) else o for o in (a, b)))


# ---- activations


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
    return mul(graph, graph.map("mul", x, add(graph, graph.map("tanh", inner), 1.0)), 0.5)


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


@register_rule(aten.relu6.default)
def relu6(graph: Graph, x: Value) -> Value:
    return clamp(graph, x, 0.0, 6.0)


@register_rule(aten.hardsigmoid.default)
def hardsigmoid(graph: Graph, x: Value) -> Value:
    return mul(graph, relu6(graph, add(graph, x, 3.0)), 1 / 6)


@register_rule(aten.hardswish.default)
def hardswish(graph: Graph, x: Value) -> Value:
    return graph.map("mul", x, hardsigmoid(graph, x))


@register_rule(aten.glu.default)
def glu(graph: Graph, x: Value, dim: int = -1) -> Value:
    a, b = x.ids.chunk(2, dim)
    return graph.map("mul", Value(a), graph.map("sigmoid", Value(b)))


@register_rule(aten._native_batch_norm_legit_no_training.default)
def batch_norm(graph: Graph, x: Value, weight, bias, mean: Constant, variance: Constant, momentum: float, eps: float):
    """In eval: x * scale + shift."""
    if mean is None or variance is None:
        raise UnsupportedOperator(
            graph, "batch_norm with the statistics of the batch, which mixes samples and positions,"
        )
    shape = (1, -1, *[1] * (x.ids.dim() - 2))
    one, zero = Constant.literal(torch.ones(1)), Constant.literal(torch.zeros(1))

    def scale(w, v):
        return (w.double() * (v.double() + eps).rsqrt()).reshape(shape).float()

    def shift(w, b, m, v):
        return (b.double() - m.double() * w.double() * (v.double() + eps).rsqrt()).reshape(shape).float()

    weight, bias = weight or one, bias or zero
    scaled = graph.map("mul", x, derive(scale, weight, variance))
    return graph.map("add", scaled, derive(shift, weight, bias, mean, variance)), None, None


@register_rule(aten.batch_norm.default)
def batch_norm_eval(graph: Graph, x: Value, weight, bias, mean, variance, training, momentum, eps, *_) -> Value:
    if training or mean is None:
        raise UnsupportedOperator(
            graph, "batch_norm with the statistics of the batch, which mixes samples and positions,"
        )
    return batch_norm(graph, x, weight, bias, mean, variance, momentum, eps)[0]
