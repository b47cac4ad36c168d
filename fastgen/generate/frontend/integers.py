"""PyTorch's integers in float32: exact as far as float32 holds them, sums that a remainder follows, or refused.

A hash of bytes, ``(((a * 256 + b) * 256 + c) * 256 + d) % 1009``, passes through integers that float32 does not hold.
``Wide`` keeps such a sum of products as its terms; the remainder is then taken term by term, exactly. Narrow integers
wrap as PyTorch's do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_any, tree_leaves, tree_map

from fastgen.generate.errors import CompileError
from fastgen.generate.frontend.ranges import (
    EXACT,
    FILLING,
    PAIRS,
    PICKS,
    TRUTH,
    UNKNOWN,
    Range,
    exact,
    mul,
    range_after,
    range_of,
)
from fastgen.generate.frontend.rules.movement import MOVEMENT, VIEWS
from fastgen.generate.frontend.scores import Scores, SoftmaxPart
from fastgen.generate.ir.graph import Constant, Graph, Value

aten = torch.ops.aten

CONVERSIONS = (aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.type_as.default)
_NARROW = (torch.uint8, torch.int8, torch.int16, torch.uint16)
_LARGEST = 2.0**62
_ADVICE = (
    f"float32, in which the sampler computes, holds integers up to 2^24 = {EXACT} exactly. Sums of products with "
    "constants may be larger where a remainder (% m, m up to 2^24) follows; make others smaller before, or clamp them"
)
_KEEPS = PICKS | {
    getattr(aten, name)
    for name in ("abs", "clamp", "clamp_max", "clamp_min", "fmod", "maximum", "minimum", "neg", "remainder", "sign")
}  # fmt: skip
"""Operators whose results float32 holds, of whatever size, where it holds their operands."""


@dataclass(frozen=True)
class Wide:
    """Integers ``constant + sum_i values[i] * factors[i]``, elementwise, that float32 does not hold."""

    values: list[Tensor]  # ids
    factors: list[Tensor]
    constant: Tensor
    low: float
    high: float

    @property
    def shape(self) -> torch.Size:
        return self.constant.shape


def is_moving(operand: object) -> bool:
    """Whether an operand depends on the input."""
    return isinstance(operand, (Value, Wide, Scores, SoftmaxPart))


def computed(graph: Graph, node, rule: Callable, args: list, kwargs: dict):
    """Returns the result of ``rule`` with its range; of integers that float32 does not hold, the terms.

    Raises:
        CompileError: the integers are too large, or of unknown size.
    """
    target, dtype = node.target, _dtype(node)
    wide = tree_any(lambda a: isinstance(a, Wide), (args, kwargs))
    if wide and target in _REMAINDERS:
        return _REMAINDERS[target](graph, *args, **kwargs)
    whole = not (dtype.is_floating_point or dtype.is_complex)
    integer = whole and dtype != torch.bool
    plain = [replace_wide(a) for a in args]
    found = range_after(graph, target, plain, tree_map(replace_wide, kwargs), whole)
    keeps = target.overloadpacket in _KEEPS or target in CONVERSIONS or target.namespace != "aten"
    if wide or (integer and not exact(found) and not keeps):
        return _as_terms(graph, target, dtype, found, args, kwargs)
    if integer:
        _check_constants(graph, target, args)
    result = rule(graph, *args, **kwargs)
    if target in CONVERSIONS:
        _check_conversion(graph, node.args[0].meta["val"].dtype, dtype, args[0])
    if target in (aten.max.dim, aten.min.dim, aten.sort.stable):
        return _bounded(result[0], found), result[1]
    if dtype == torch.bool and target in PAIRS and found[1] > TRUTH[1]:  # a sum of truth values is one
        result = graph.map("ne", result, Constant.literal(0.0))
    return tree_map(lambda r: _fitted(graph, r, found, dtype) if isinstance(r, Value) else r, result)


def replace_wide(operand):
    """Replaces integers beyond float32 by what ``range_of`` understands."""
    return Value(torch.empty(operand.shape), operand.low, operand.high) if isinstance(operand, Wide) else operand


def _dtype(node) -> torch.dtype:
    return next((v.dtype for v in tree_leaves(node.meta["val"]) if isinstance(v, Tensor)), torch.float32)


def _bounded(value: Value, found: Range) -> Value:
    return replace(value, low=found[0], high=found[1])


def _fitted(graph: Graph, value: Value, found: Range, dtype: torch.dtype) -> Value:
    """Returns the value as its dtype holds it: narrow integers wrap."""
    if dtype == torch.bool:
        return _bounded(value, TRUTH)
    if dtype in _NARROW:
        limits = torch.iinfo(dtype)
        if not (limits.min <= found[0] and found[1] <= limits.max):
            shifted = graph.map("addc", value, x=float(-limits.min)) if limits.min else value
            value = graph.map("remainder", shifted, Constant.literal(float(limits.max - limits.min + 1)))
            value = graph.map("addc", value, x=float(limits.min)) if limits.min else value
            found = float(limits.min), float(limits.max)
    return _bounded(value, found)


def _check_conversion(graph: Graph, before: torch.dtype, after: torch.dtype, x: Value) -> None:
    if not before.is_floating_point or after.is_floating_point or after == torch.bool:
        return
    limits = torch.iinfo(after)
    if after in _NARROW and not (limits.min - 1 < x.low and x.high < limits.max + 1):
        raise CompileError(
            f"floats in {x.low:g} .. {x.high:g} are converted to {after} at {graph.place}, which PyTorch "
            f"leaves undefined outside {limits.min} .. {limits.max}; clamp them first"
        )
    if before == torch.float64 and not exact((x.low, x.high)):
        raise CompileError(f"float64 numbers in {x.low:g} .. {x.high:g} become {after} at {graph.place}; {_ADVICE}")


def _check_constants(graph: Graph, target, args: list) -> None:
    """Raises CompileError where an operand that is computed with, or put among others, is lost in float32."""
    for operand in tree_leaves(args):
        if isinstance(operand, Constant) and not (operand.tensor.is_floating_point() or operand.tensor.is_complex()):
            if not torch.equal(operand.tensor.float().double(), operand.tensor.double()):
                raise _refused(graph, range_of(operand))
        elif (
            target in (*PAIRS, *FILLING) and isinstance(operand, int) and float(torch.tensor(float(operand))) != operand
        ):
            raise _refused(graph, (operand, operand))


def _refused(graph: Graph, found: Range) -> CompileError:
    size = max(-found[0], found[1])
    what = f"up to {size:.3g}" if size < float("inf") else "of unknown size"
    return CompileError(f"integers {what} are computed at {graph.place}; {_ADVICE}")


# ---- sums of products with constants

_PADDING = (aten.pad.default, aten.constant_pad_nd.default)


def _terms(graph: Graph, operand, shape) -> Wide:
    if isinstance(operand, Wide):
        values, factors, constant = operand.values, operand.factors, operand.constant
    elif isinstance(operand, Value):
        values, factors, constant = (
            [operand.ids],
            [torch.ones((), dtype=torch.int64)],
            torch.zeros((), dtype=torch.int64),
        )
    else:
        values, factors, constant = [], [], _fixed(graph, operand)
    return Wide([v.expand(shape) for v in values], [f.expand(shape) for f in factors], constant.expand(shape), 0, 0)


def _fixed(graph: Graph, operand) -> Tensor:
    if not isinstance(operand, Constant):
        return torch.as_tensor(operand)
    fixed = operand.tensor.long().clone()  # the module's own tensor may change in place
    graph.assume(operand.recipe, lambda t: torch.equal(t.long(), fixed))
    return fixed


def _as_terms(graph: Graph, target, dtype: torch.dtype, found: Range, args: list, kwargs: dict) -> Wide:
    """Returns the result as a sum of products with constants.

    Raises:
        CompileError: it is none, or needs more bits than its dtype has.
    """
    limit = _LARGEST if dtype == torch.int64 else float(1 << 31)
    if target in CONVERSIONS and dtype == torch.int64:
        return args[0]
    if dtype not in (torch.int64, torch.int32) or not (-limit <= found[0] and found[1] < limit):
        raise _refused(graph, found)
    if target in (*MOVEMENT, *VIEWS, *_PADDING, aten.clone.default):
        (x,) = [a for a in tree_leaves(args) if is_moving(a)][:1]
        if sum(map(is_moving, tree_leaves(args))) != 1:
            raise _refused(graph, found)

        if target in _PADDING and any(isinstance(a, (int, float)) and a for a in (*args[2:], *kwargs.values())):
            raise _refused(graph, found)

        def move(t: Tensor) -> Tensor:
            if target in VIEWS:
                return t.reshape(args[1])
            return target(*tree_map(lambda a: t if a is x else a, args), **kwargs)

        return Wide([*map(move, x.values)], [*map(move, x.factors)], move(x.constant), *found)
    if target in _LINEAR:
        return replace(_LINEAR[target](graph, *args, **kwargs), low=found[0], high=found[1])
    raise _refused(graph, found)


def _shape(*operands) -> torch.Size:
    return torch.broadcast_shapes(
        *[o.tensor.shape if isinstance(o, Constant) else getattr(o, "shape", ()) for o in operands]
    )


def _scaled(graph: Graph, x, factor) -> Wide:
    if is_moving(factor):
        x, factor = factor, x
    if is_moving(factor):
        raise _refused(graph, mul((x.low, x.high), (factor.low, factor.high)))
    shape, factor = _shape(x, factor), _fixed(graph, factor)
    x = _terms(graph, x, shape)
    return Wide(x.values, [f * factor for f in x.factors], x.constant * factor, 0, 0)


def _sum(graph: Graph, a, b, alpha: int = 1) -> Wide:
    shape = _shape(a, b)
    a, b = _terms(graph, a, shape), _scaled(graph, _terms(graph, b, shape), alpha)
    return Wide(a.values + b.values, a.factors + b.factors, a.constant + b.constant, 0, 0)


def _summed(graph: Graph, x, dims=None, keepdim: bool = False, **_) -> Wide:
    x = _terms(graph, x, x.shape)
    rank = len(x.shape)
    chosen = sorted({d % rank for d in dims}) if dims else list(range(rank))

    def parts(t: Tensor) -> list[Tensor]:
        t = t.movedim(chosen, list(range(len(chosen)))).flatten(0, len(chosen) - 1)
        return [p.reshape([1 if d in chosen else n for d, n in enumerate(x.shape)]) if keepdim else p for p in t]

    return Wide(
        [p for v in x.values for p in parts(v)],
        [p for f in x.factors for p in parts(f)],
        x.constant.sum(chosen, keepdim),
        0,
        0,
    )


_LINEAR = {
    aten.add.Tensor: _sum, aten.add.Scalar: _sum, aten.sum.default: _summed, aten.sum.dim_IntList: _summed,
    aten.sub.Tensor: lambda graph, a, b, alpha=1: _sum(graph, a, b, -alpha),
    aten.sub.Scalar: lambda graph, a, b, alpha=1: _sum(graph, a, b, -alpha),
    aten.rsub.Scalar: lambda graph, a, b, alpha=1: _sum(graph, b, a, -alpha),
    aten.mul.Tensor: _scaled, aten.mul.Scalar: _scaled,
    aten.neg.default: lambda graph, x: _scaled(graph, x, -1),
    aten.__lshift__.Scalar: lambda graph, x, n: _scaled(graph, x, 1 << n),
    aten.bitwise_left_shift.Tensor_Scalar: lambda graph, x, n: _scaled(graph, x, 1 << n),
}  # fmt: skip


def _number(graph: Graph, operand) -> int:
    if isinstance(operand, Constant) and operand.tensor.numel() == 1:
        return int(_fixed(graph, operand))
    if isinstance(operand, int):
        return operand
    raise _refused(graph, UNKNOWN)


def _remainder(graph: Graph, x, modulus) -> Value:
    m = _number(graph, modulus) if isinstance(x, Wide) else 0
    if not 0 < m <= EXACT:
        raise _refused(graph, range_of(replace_wide(x)))
    total: Value | Constant = Constant.literal((x.constant % m).float())
    for ids, factor in zip(x.values, x.factors, strict=True):
        total = graph.map("mulmod", Value(ids), Constant.literal((factor % m).float()), total, x=float(m))
    return Value(total.ids, 0.0, float(m - 1))


def _masked(graph: Graph, x, mask) -> Value:
    """``x & (2^k - 1)`` is the remainder of 2^k, of negative numbers too."""
    x, mask = (x, mask) if isinstance(x, Wide) else (mask, x)
    bits = 0 if is_moving(mask) else _number(graph, mask)
    if bits & (bits + 1):
        raise _refused(graph, (x.low, x.high))
    return _remainder(graph, x, bits + 1)


def _towards_zero(graph: Graph, x, modulus) -> Value:
    if not isinstance(x, Wide) or x.low < 0:
        raise _refused(graph, range_of(replace_wide(x)))
    return _remainder(graph, x, abs(_number(graph, modulus)))


_REMAINDERS = {
    aten.remainder.Scalar: _remainder, aten.remainder.Tensor: _remainder, aten.fmod.Scalar: _towards_zero,
    aten.fmod.Tensor: _towards_zero, aten.bitwise_and.Scalar: _masked, aten.bitwise_and.Tensor: _masked,
    aten.__and__.Scalar: _masked, aten.__and__.Tensor: _masked,
}  # fmt: skip
