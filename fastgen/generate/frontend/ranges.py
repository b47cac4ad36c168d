"""Bounds of the numbers of a tensor, operator by operator: where float32 holds integers exactly.

The machines compute in float32, which holds every integer up to ``EXACT``; PyTorch's integers have 8 to 64 bits. A
``Value`` carries the least and the greatest number that it can hold (infinite where nothing is known), so that the
arithmetic of integers either is exact or is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.utils._pytree import tree_leaves

from fastgen.generate.ir.graph import Constant, Graph, Value

aten = torch.ops.aten
EXACT = 1 << 24

Range = tuple[float, float]
UNKNOWN: Range = (-math.inf, math.inf)


def range_of(operand: object, graph: Graph | None = None) -> Range:
    """Returns the least and the greatest number of an operand, which new parameters do not change."""
    if isinstance(operand, Value):
        return operand.low, operand.high
    if not isinstance(operand, Constant):
        return (float(operand), float(operand)) if isinstance(operand, (bool, int, float)) else UNKNOWN
    tensor = operand.tensor
    if not tensor.numel() or tensor.is_complex() or (tensor.is_floating_point() and operand.recipe.sources):
        return UNKNOWN
    low, high = tensor.min(), tensor.max()
    if operand.recipe.sources and graph is not None:
        graph.assume(operand.recipe, lambda t: bool(t.min() >= low) and bool(t.max() <= high))
    return (float(low), float(high)) if low == low else UNKNOWN


def exact(r: Range) -> bool:
    """Whether float32 holds every integer of the range."""
    return r[0] >= -EXACT and r[1] <= EXACT


def hull(ranges: Sequence[Range]) -> Range:
    return min(r[0] for r in ranges), max(r[1] for r in ranges)


def corners(function: Callable[[float, float], float], a: Range, b: Range) -> Range:
    """Returns the range of a function that is monotone in either operand."""
    values = [function(x, y) for x in a for y in b]
    return UNKNOWN if any(v != v for v in values) else (min(values), max(values))


def _product(x: float, y: float) -> float:
    return 0.0 if x == 0 or y == 0 else x * y


def add(a: Range, b: Range, alpha: float = 1) -> Range:
    b = corners(_product, b, (alpha, alpha))
    return a[0] + b[0], a[1] + b[1]


def sub(a: Range, b: Range, alpha: float = 1) -> Range:
    return add(a, b, -alpha)


def mul(a: Range, b: Range) -> Range:
    return corners(_product, a, b)


def _quotient(a: Range, b: Range) -> Range:
    if b[0] <= 0 <= b[1] or math.isinf(b[0]) or math.isinf(b[1]):
        return UNKNOWN
    return corners(lambda x, y: x / y, a, b)


def _floors(a: Range, b: Range) -> Range:
    low, high = _quotient(a, b)
    return low - 1, high + 1


def _remainder(a: Range, b: Range) -> Range:
    """Returns the range of a remainder: of the divisor's sign, and smaller; of integers by one."""
    if b[0] > 0 and a[0] >= 0 and a[1] < b[0]:
        return a
    return min(b[0], 0.0), max(b[1], 0.0)


def _fmod(a: Range, b: Range) -> Range:
    size = max(-b[0], b[1])
    return max(min(a[0], 0.0), -size), min(max(a[1], 0.0), size)


def _power(a: Range, b: Range) -> Range:
    if b[0] != b[1] or b[0] < 0 or b[0] != int(b[0]):
        return UNKNOWN
    try:
        low, high = sorted(x ** int(b[0]) for x in a)
    except OverflowError:
        return UNKNOWN
    return (min(low, 0.0) if a[0] < 0 < a[1] else low), high


def _bits(a: Range, b: Range) -> Range:
    """Returns the range of an operation bit by bit: as many bits as the longer operand."""
    low, high = hull([a, b])
    if math.isinf(low) or math.isinf(high):
        return UNKNOWN
    size = 1 << max(int(high).bit_length(), int(-low - 1).bit_length() if low < 0 else 0)
    return (float(-size) if low < 0 else 0.0), float(size - 1)


def _and(a: Range, b: Range) -> Range:
    for x in (a, b):
        if x[0] >= 0:  # no bit outside those of a number that is not negative
            return 0.0, min(y[1] for y in (a, b) if y[0] >= 0)
    return _bits(a, b)


def _left(a: Range, b: Range) -> Range:
    return corners(lambda x, y: x * 2.0**y, a, b) if 0 <= b[0] <= b[1] <= 63 else UNKNOWN


def _right(a: Range, b: Range) -> Range:
    return _floors(a, (2.0 ** b[0], 2.0 ** b[1])) if 0 <= b[0] <= b[1] <= 63 else UNKNOWN


def _clamp(x: Range, low: Range | None = None, high: Range | None = None) -> Range:
    if low is not None:
        x = max(x[0], low[0]), max(x[1], low[1])
    if high is not None:
        x = min(x[0], high[0]), min(x[1], high[1])
    return x


def _size(x: Range) -> Range:
    low, high = sorted(map(abs, x))
    return (0.0 if x[0] <= 0 <= x[1] else low), high


TRUTH: Range = (0.0, 1.0)
UNIT: Range = (-1.0, 1.0)

_PAIRS = {
    (aten.add.Tensor, aten.add.Scalar): add,
    (aten.sub.Tensor, aten.sub.Scalar): sub,
    (aten.rsub.Tensor, aten.rsub.Scalar): lambda a, b, alpha=1: sub(b, a, alpha),
    (aten.mul.Tensor, aten.mul.Scalar): mul,
    (aten.div.Tensor, aten.div.Scalar): _quotient,
    (aten.div.Tensor_mode, aten.div.Scalar_mode, aten.floor_divide.default, aten.floor_divide.Scalar): _floors,
    (aten.remainder.Tensor, aten.remainder.Scalar, aten.remainder.Scalar_Tensor): _remainder,
    (aten.fmod.Tensor, aten.fmod.Scalar): _fmod,
    (aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.pow.Scalar): _power,
    (aten.maximum.default, aten.max.other): lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    (aten.minimum.default, aten.min.other): lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    (aten.bitwise_and.Tensor, aten.bitwise_and.Scalar, aten.__and__.Tensor, aten.__and__.Scalar): _and,
    (aten.bitwise_or.Tensor, aten.bitwise_or.Scalar, aten.__or__.Tensor, aten.__or__.Scalar): _bits,
    (aten.bitwise_xor.Tensor, aten.bitwise_xor.Scalar, aten.__xor__.Tensor, aten.__xor__.Scalar): _bits,
    (
        aten.bitwise_left_shift.Tensor,
        aten.bitwise_left_shift.Tensor_Scalar,
        aten.bitwise_left_shift.Scalar_Tensor,
        aten.__lshift__.Tensor,
        aten.__lshift__.Scalar,
    ): _left,
    (
        aten.bitwise_right_shift.Tensor,
        aten.bitwise_right_shift.Tensor_Scalar,
        aten.bitwise_right_shift.Scalar_Tensor,
        aten.__rshift__.Tensor,
        aten.__rshift__.Scalar,
    ): _right,
    (aten.clamp_min.default,): lambda x, low: _clamp(x, low),
    (aten.clamp_max.default,): lambda x, high: _clamp(x, None, high),
    (aten.abs.default,): _size,
    (aten.neg.default,): lambda x: (-x[1], -x[0]),
    (aten.bitwise_not.default,): lambda x: (-x[1] - 1, -x[0] - 1),
    (aten.square.default,): lambda x: mul(_size(x), _size(x)),
    (aten.sin.default, aten.cos.default): lambda x: UNIT,
}
PAIRS = {operator: function for operators, function in _PAIRS.items() for operator in operators}

MONOTONE = {
    getattr(aten, name).default
    for name in (
        "relu",
        "tanh",
        "sigmoid",
        "erf",
        "sign",
        "floor",
        "ceil",
        "round",
        "trunc",
        "fix",
        "hardtanh",
        "hardsigmoid",
        "relu6",
        "sqrt",
        "exp",
        "log",
        "log1p",
        "expm1",
    )
}
PICKS = {
    getattr(aten, name)
    for name in (
        "alias",
        "amax",
        "amin",
        "broadcast_to",
        "cat",
        "channel_shuffle",
        "chunk",
        "clone",
        "constant_pad_nd",
        "contiguous",
        "copy",
        "detach",
        "diagonal",
        "expand",
        "expand_as",
        "flatten",
        "flip",
        "gather",
        "im2col",
        "index",
        "index_put",
        "index_select",
        "kthvalue",
        "lift_fresh_copy",
        "masked_fill",
        "max",
        "median",
        "min",
        "movedim",
        "narrow",
        "pad",
        "permute",
        "pixel_shuffle",
        "pixel_unshuffle",
        "repeat",
        "repeat_interleave",
        "reshape",
        "roll",
        "rot90",
        "scatter",
        "select",
        "select_scatter",
        "slice",
        "sort",
        "topk",
        "slice_scatter",
        "split",
        "split_with_sizes",
        "squeeze",
        "stack",
        "swapaxes",
        "t",
        "tile",
        "to",
        "_to_copy",
        "transpose",
        "tril",
        "triu",
        "type_as",
        "zeros_like",
        "ones_like",
        "full_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "fill",
        "empty_like",
        "unbind",
        "unflatten",
        "unfold",
        "unsqueeze",
        "view",
        "view_as",
        "where",
        "_unsafe_view",
        "embedding",
        "dropout",
        "as_strided",
        "numpy_T",
        "upsample_nearest1d",
        "upsample_nearest2d",
        "upsample_nearest3d",
        "_reshape_alias",
    )
}
"""Operators whose results are elements of their operands, or zeros, or rounded to integers."""
_SUMS = (aten.sum.default, aten.sum.dim_IntList, aten.cumsum.default)
_COUNTS = (aten.bucketize.Tensor, aten.searchsorted.Tensor)
_CHOSEN = (aten.argmax.default, aten.argmin.default)


def range_after(graph: Graph, target, args: list, kwargs: dict, whole: bool) -> Range:
    """Returns the range of an operator's results, from its operands'; ``whole``: they are integers or truth values."""
    if target in PAIRS:
        ranges = [range_of(a, graph) for a in args]
        found = PAIRS[target](*ranges, **{k: v for k, v in kwargs.items() if k == "alpha"})
        if target in (aten.remainder.Tensor, aten.remainder.Scalar) and whole:
            found = min(found[0] + 1, 0.0), max(found[1] - 1, 0.0)
    elif target in (aten.clamp.default, aten.clamp.Tensor):
        named = dict(zip(("x", "low", "high"), args, strict=False))
        named |= {end: kwargs[name] for name, end in (("min", "low"), ("max", "high")) if name in kwargs}
        found = _clamp(**{k: range_of(v, graph) for k, v in named.items() if v is not None})
    elif target in MONOTONE:
        ends = torch.tensor(range_of(args[0]), dtype=torch.float64)
        low, high = target(ends, *args[1:]).tolist()
        found = (low, high) if low <= high else UNKNOWN
    elif target in _SUMS:
        low, high = range_of(args[0])
        count = args[0].ids.numel()
        if target is aten.sum.dim_IntList and args[1]:
            count = math.prod(args[0].shape[d] for d in args[1])
        elif target is aten.cumsum.default:
            count = args[0].shape[args[1]]
        found = min(low, low * count), max(high, high * count)
    elif getattr(target, "overloadpacket", None) in PICKS:
        operands = [a for a in (*tree_leaves(args), *tree_leaves(kwargs)) if isinstance(a, (Value, Constant))]
        first = operands[:1] if target in _BY_INDEX else [o for o in operands if not _is_truth(o)] or operands
        fills = (
            [float(a) for a in (*args[1:], *kwargs.values()) if isinstance(a, (int, float))]
            if target in FILLING
            else []
        )
        found = hull([(0.0, 0.0), *[range_of(o, graph) for o in first], *[(f, f) for f in fills]])
    elif target in _CHOSEN:
        found = 0.0, float(args[0].ids.numel())
    elif target in _COUNTS:
        found = 0.0, float(max(a.tensor.numel() for a in args if isinstance(a, Constant)))
    elif target in (aten.one_hot.default, aten.softmax.int, aten._softmax.default):
        found = TRUTH
    elif target in (aten.mean.default, aten.mean.dim):
        found = range_of(args[0])
    else:
        return UNKNOWN
    if whole:
        return found
    return tuple(x * (1 + math.copysign(1e-6, x) * sign) if x else x for x, sign in zip(found, (-1, 1), strict=True))


_BY_INDEX = (
    aten.index.Tensor,
    aten.index_select.default,
    aten.gather.default,
    aten.embedding.default,
)
FILLING = (
    aten.masked_fill.Scalar,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
    aten.where.Scalar,
    aten.pad.default,
    aten.constant_pad_nd.default,
    aten.scatter.value,
)


def _is_truth(operand: Value | Constant) -> bool:
    return isinstance(operand, Constant) and operand.tensor.dtype == torch.bool
