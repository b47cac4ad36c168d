"""Elementwise operators."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from fastgen.generate.errors import UnsupportedOperator
from fastgen.generate.frontend.rules.registry import register_rule
from fastgen.generate.ir.graph import Constant, Graph, Value, derive

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
    """Returns the number, if the operand is one (a literal, which no parameter changes)."""
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
    if isinstance(b, Constant) and bool((b.tensor == -math.inf).any()):
        return _masked_out(graph, a, b)
    return graph.map("add", a, b)


def _masked_out(graph: Graph, a: Value, b: Constant) -> Value:
    """Says that what -inf is added to is not used."""
    hidden = b.tensor == -math.inf
    graph.assume(b.recipe, lambda t: torch.equal(t == -math.inf, hidden))
    rest = add(graph, a, derive(lambda t: t.masked_fill(hidden, 0.0), b))
    return Value(torch.where(hidden, graph.value_id(-math.inf), rest.ids))


def mul(graph: Graph, a: Operand, b: Operand) -> Value:
    if not isinstance(a, Value):
        a, b = b, a
    number = scalar(b)
    if number is not None:
        if number == 0:
            return Value(torch.zeros_like(a.ids))
        product = graph.map("mulc", a, x=number)
        return keep_hidden(graph, a, product) if number > 0 else product
    if isinstance(b, Constant) and bool((b.tensor == 0).any()):
        mask = b.tensor != 0
        graph.assume(b.recipe, lambda t: torch.equal(t != 0, mask))
        kept = Value(torch.where(mask, a.ids, 0))  # what a zero multiplies is not used
        if bool((b.tensor[mask] == 1).all()):
            graph.assume(b.recipe, lambda t: bool((t[mask] == 1).all()))
            return kept
        return Value(torch.where(mask, graph.map("mul", kept, b).ids, 0))
    if isinstance(b, Value):
        used = (a.ids != 0) & (b.ids != 0)
        if not used.all():
            if not used.any():
                return Value(torch.zeros(used.shape, dtype=torch.int64))
            product = graph.map("mul", Value(torch.where(used, a.ids, 0)), Value(torch.where(used, b.ids, 0)))
            return Value(torch.where(used, product.ids, 0))
    return graph.map("mul", a, b)


def keep_hidden(graph: Graph, x: Value, result: Value) -> Value:
    """Returns the result of an operator that leaves -inf as it is: a mask that was added stays one."""
    hidden = graph.is_value(x.ids, -math.inf)
    return Value(torch.where(hidden, x.ids, result.ids)) if hidden.any() else result


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
    quotient = graph.map("div", constant(a), constant(b))
    if isinstance(a, Value):
        number = scalar(b) if not isinstance(b, Value) else None
        if number is not None and number > 0:
            return keep_hidden(graph, a, quotient)
        if not a.ids.all():  # zero by anything
            return Value(torch.where(a.ids.expand(quotient.shape) == 0, 0, quotient.ids))
    return quotient


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
    if exponent in (2, 3, -2):
        product = graph.map("mul", a, a)
        product = product if exponent != 3 else graph.map("mul", product, a)
        return product if exponent > 0 else graph.map("reciprocal", product)
    if exponent == -0.5:
        return graph.map("rsqrt", a)
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
    a = a if value == 1 else _either(graph, mul, torch.mul, a, value)
    return add(graph, x, _either(graph, mul, torch.mul, a, b))


@register_rule(aten.addcdiv.default)
def addcdiv(graph: Graph, x: Operand, a: Operand, b: Operand, *, value: float = 1) -> Value:
    a = a if value == 1 else _either(graph, mul, torch.mul, a, value)
    return add(graph, x, _either(graph, div, torch.div, a, b))


@register_rule(aten.lerp.Scalar, aten.lerp.Tensor)
def lerp(graph: Graph, a: Operand, b: Operand, weight: Operand) -> Value:
    return add(graph, a, _either(graph, mul, torch.mul, weight, _either(graph, sub, torch.sub, b, a)))


@register_rule(aten.logaddexp.default)
def logaddexp(graph: Graph, a: Operand, b: Operand) -> Value:
    same = graph.map("eq", constant(a), constant(b))  # two infinities have no difference
    between = graph.map("where", same, constant(0.0), sub(graph, a, b))
    smaller = graph.map("exp", graph.map("neg", graph.map("abs", between)))
    return graph.map("add", maximum(graph, a, b), graph.map("log1p", smaller))


def _logarithm(base: float) -> Callable[[Graph, Value], Value]:
    """Computes any logarithm by the natural one; exact at the powers of the base."""

    def rule(graph: Graph, x: Value) -> Value:
        y = mul(graph, graph.map("log", x), 1 / math.log(base))
        nearest = graph.map("round", y)
        is_power = graph.map("eq", graph.map("pow", constant(base), nearest), x)
        normal = graph.map("le", constant(torch.finfo(torch.float32).tiny), x)  # below, many numbers share a power
        is_power = graph.map("mul", is_power, normal)
        return graph.map("where", is_power, nearest, y)

    return rule


register_rule(aten.log2.default)(_logarithm(2.0))
register_rule(aten.log10.default)(_logarithm(10.0))


@register_rule(aten.exp2.default)
def exp2(graph: Graph, x: Value) -> Value:
    return graph.map("pow", constant(2.0), x)


@register_rule(aten.tan.default)
def tan(graph: Graph, x: Value) -> Value:
    return graph.map("div", graph.map("sin", x), graph.map("cos", x))


@register_rule(aten.hypot.default)
def hypot(graph: Graph, a: Operand, b: Operand) -> Value:
    """Divides by the larger of the two, so that no square overflows."""
    a, b = graph.map("abs", constant(a)), graph.map("abs", constant(b))
    large, small = graph.map("max", a, b), graph.map("min", a, b)
    ratio = graph.map(
        "where", graph.map("eq", large, small), graph.map("ne", large, constant(0.0)), graph.map("div", small, large)
    )
    return graph.map("mul", large, graph.map("sqrt", graph.map("addc", graph.map("mul", ratio, ratio), x=1.0)))


@register_rule(aten.logit.default)
def logit(graph: Graph, x: Value, eps: float | None = None) -> Value:
    x = x if eps is None else clamp(graph, x, eps, 1 - eps)
    return graph.map("log", graph.map("div", x, sub(graph, 1.0, x)))


@register_rule(aten.isnan.default)
def isnan(graph: Graph, x: Value) -> Value:
    return graph.map("ne", x, x)


@register_rule(aten.isinf.default)
def isinf(graph: Graph, x: Value) -> Value:
    return graph.map("eq", graph.map("abs", x), constant(math.inf))


@register_rule(aten.isfinite.default)
def isfinite(graph: Graph, x: Value) -> Value:
    return graph.map("lt", graph.map("abs", x), constant(math.inf))


@register_rule(aten.nan_to_num.default)
def nan_to_num(graph: Graph, x: Value, nan=None, posinf=None, neginf=None) -> Value:
    most = torch.finfo(torch.float32).max
    for number, given, usual in ((math.inf, posinf, most), (-math.inf, neginf, -most)):
        x = graph.map("where", graph.map("eq", x, constant(number)), constant(usual if given is None else given), x)
    return graph.map("where", graph.map("ne", x, x), constant(nan or 0.0), x)


@register_rule(aten.signbit.default)
def signbit(graph: Graph, x: Value) -> Value:
    """Tells the sign of a zero by its reciprocal."""
    told = graph.map("where", graph.map("eq", x, constant(0.0)), graph.map("reciprocal", x), x)
    return graph.map("lt", told, constant(0.0))


@register_rule(aten.copysign.Tensor, aten.copysign.Scalar)
def copysign(graph: Graph, a: Operand, b: Operand) -> Value:
    size = graph.map("abs", constant(a))
    negative = signbit(graph, b) if isinstance(b, Value) else derive(torch.signbit, constant(b))
    return where(graph, negative, graph.map("neg", size), size)


@register_rule(aten.fmax.default)
def fmax(graph: Graph, a: Operand, b: Operand) -> Value:
    return _without_nan(graph, maximum, a, b)


@register_rule(aten.fmin.default)
def fmin(graph: Graph, a: Operand, b: Operand) -> Value:
    return _without_nan(graph, minimum, a, b)


def _without_nan(graph: Graph, choose: Callable, a: Operand, b: Operand) -> Value:
    """Returns the other operand where one is NaN."""
    a, b = constant(a), constant(b)
    chosen = graph.map("where", graph.map("ne", b, b), a, choose(graph, a, b))
    return graph.map("where", graph.map("ne", a, a), b, chosen)


# ---- batch norm

_RUNNING = "Use running statistics, as nn.BatchNorm1d and 2d do in eval mode, or normalise over channels"


@register_rule(aten._native_batch_norm_legit_no_training.default)
def batch_norm(graph: Graph, x: Value, weight, bias, mean: Constant, variance: Constant, momentum: float, eps: float):
    """In eval mode: x * scale + shift."""
    if mean is None or variance is None:
        raise UnsupportedOperator(
            graph, "batch_norm with the statistics of the batch", "mixes samples and positions", _RUNNING
        )
    shape = (1, -1, *[1] * (x.ids.dim() - 2))
    one, zero = (Constant.literal(torch.tensor([value], dtype=torch.float32)) for value in (1.0, 0.0))

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
            graph, "batch_norm with the statistics of the batch", "mixes samples and positions", _RUNNING
        )
    return batch_norm(graph, x, weight, bias, mean, variance, momentum, eps)[0]
