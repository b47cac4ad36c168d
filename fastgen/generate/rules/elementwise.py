"""Elementwise operators."""

from __future__ import annotations

import math
from collections.abc import Callable

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
    aten.sign: "sign", aten.relu: "relu", aten.trunc: "trunc", aten.fix: "trunc",
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
    if rounding_mode == "floor":
        return floor_divide(graph, a, b)
    quotient = div(graph, a, b)
    return quotient if rounding_mode is None else graph.map("trunc", quotient)


@register_rule(aten.floor_divide.default, aten.floor_divide.Scalar)
def floor_divide(graph: Graph, a: Operand, b: Operand) -> Value:
    return graph.map("floor_divide", constant(a), constant(b))


@register_rule(aten.round.decimals)
def round_decimals(graph: Graph, x: Value, *, decimals: int) -> Value:
    shift = constant(10.0 ** abs(decimals))
    there, back = ("mul", "div") if decimals >= 0 else ("div", "mul")
    return graph.map(back, graph.map("round", graph.map(there, x, shift)), shift)


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


@register_rule(aten.maximum.default, aten.max.other)
def maximum(graph: Graph, a: Operand, b: Operand) -> Value:
    return graph.map("max", constant(a), constant(b))


@register_rule(aten.minimum.default, aten.min.other)
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


@register_rule(aten.remainder.Scalar, aten.remainder.Tensor, aten.remainder.Scalar_Tensor)
def remainder(graph: Graph, a: Operand, b: Operand) -> Value:
    return graph.map("remainder", constant(a), constant(b))


@register_rule(aten.fmod.Scalar, aten.fmod.Tensor)
def fmod(graph: Graph, a: Operand, b: Operand) -> Value:
    return graph.map("fmod", constant(a), constant(b))


def _either(graph: Graph, rule: Callable, fold: Callable, a: Operand, b: Operand) -> Value | Constant:
    """``rule``, or ``fold`` where neither operand depends on the input."""
    if isinstance(a, Value) or isinstance(b, Value):
        return rule(graph, a, b)
    return derive(fold, constant(a), constant(b))


@register_rule(aten.addcmul.default)
def addcmul(graph: Graph, x: Operand, a: Operand, b: Operand, *, value: float = 1) -> Value:
    return add(graph, x, _either(graph, mul, torch.mul, a, b), value)


@register_rule(aten.addcdiv.default)
def addcdiv(graph: Graph, x: Operand, a: Operand, b: Operand, *, value: float = 1) -> Value:
    return add(graph, x, _either(graph, div, torch.div, a, b), value)


@register_rule(aten.lerp.Scalar, aten.lerp.Tensor)
def lerp(graph: Graph, a: Operand, b: Operand, weight: Operand) -> Value:
    return add(graph, a, _either(graph, mul, torch.mul, weight, _either(graph, sub, torch.sub, b, a)))


@register_rule(aten.logaddexp.default)
def logaddexp(graph: Graph, a: Operand, b: Operand) -> Value:
    smaller = graph.map("exp", graph.map("neg", graph.map("abs", sub(graph, a, b))))
    return graph.map("add", maximum(graph, a, b), graph.map("log1p", smaller))


for _operator, _base in (aten.log2, 2), (aten.log10, 10):
    register_rule(_operator.default)(lambda graph, x, _base=_base: mul(graph, graph.map("log", x), 1 / math.log(_base)))


@register_rule(aten.exp2.default)
def exp2(graph: Graph, x: Value) -> Value:
    return graph.map("pow", constant(2.0), x)


# ---- truth values


@register_rule(aten.logical_not.default, aten.bitwise_not.default)
def logical_not(graph: Graph, x: Value, *, result: torch.dtype) -> Value:
    _only_booleans(graph, result)
    return graph.map("eq", x, constant(0.0))


@register_rule(aten.logical_and.default, aten.bitwise_and.Tensor, aten.__and__.Tensor)
def logical_and(graph: Graph, a: Operand, b: Operand, *, result: torch.dtype) -> Value:
    _only_booleans(graph, result)
    return graph.map("mul", _truth(graph, a), _truth(graph, b))


@register_rule(aten.logical_or.default, aten.bitwise_or.Tensor, aten.__or__.Tensor)
def logical_or(graph: Graph, a: Operand, b: Operand, *, result: torch.dtype) -> Value:
    _only_booleans(graph, result)
    return graph.map("max", _truth(graph, a), _truth(graph, b))


@register_rule(aten.logical_xor.default, aten.bitwise_xor.Tensor, aten.__xor__.Tensor)
def logical_xor(graph: Graph, a: Operand, b: Operand, *, result: torch.dtype) -> Value:
    _only_booleans(graph, result)
    return graph.map("ne", _truth(graph, a), _truth(graph, b))


def _truth(graph: Graph, x: Operand) -> Value | Constant:
    return graph.map("ne", x, constant(0.0)) if isinstance(x, Value) else derive(lambda t: t != 0, constant(x))


def _only_booleans(graph: Graph, result: torch.dtype) -> None:
    if result != torch.bool:
        raise UnsupportedOperator(graph, "an operator on the bits of integers")


# ---- batch norm


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
