"""Reductions, softmax and norms, over channels."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from fastgen.generate.errors import UnsupportedOperator
from fastgen.generate.frontend.rules.contraction import embedding
from fastgen.generate.frontend.rules.elementwise import add, constant, div, mul
from fastgen.generate.frontend.rules.registry import register_rule
from fastgen.generate.ir.channels import Table, beside, channel_runs
from fastgen.generate.ir.graph import Constant, Graph, Value, derive

aten = torch.ops.aten
_OVER_CHANNELS = "Normalise over the channels of each position: move them last, then layer_norm or rms_norm over them"
_FOLD = {"sum": "add", "amax": "max", "amin": "min"}


def over(graph: Graph, opcode: str, x: Value, dim: int, group: int | None = None) -> Value:
    """Reduces groups of ``group`` neighbours (all, by default) along ``dim``; the result keeps the shape, broadcast."""
    dim = dim % x.ids.dim()
    size = x.shape[dim]
    if size == 1:
        return x
    runs = channel_runs(graph, [Table.of(graph, x.ids.movedim(dim, -1))])
    if len(runs) > 64:
        raise UnsupportedOperator(
            graph,
            f"a reduction over {size} elements that are not the channels of one position",
            change="Reduce over channels; a sum of earlier positions is cumsum",
        )
    dims = [*beside(graph, x.shape, [x], dim), dim]  # of each head, say: neighbours among all channels
    if len(dims) > 1:
        flat = x.ids.movedim(dims, list(range(-len(dims), 0))).flatten(-len(dims))
        runs = channel_runs(graph, [Table.of(graph, flat)])
    if len(runs) > 1 or runs[0][2] != (1,):
        x = graph.map("addc", x, x=0.0, channel=dim, ordered=True)
    return graph.map(opcode, x, x=float(group or size), channel=dim)


def reduce(graph: Graph, opcode: str, x: Value, dims, keepdim: bool) -> Value:
    rank = x.ids.dim()
    dims = [dims] if isinstance(dims, int) else list(dims)
    dims = sorted({d % rank for d in dims}) if dims else list(range(rank))
    for dim in dims:
        lines = Table.of(graph, x.ids.movedim(dim, -1))
        runs = channel_runs(graph, [lines])
        spread = len(runs) == 1 and runs[0][2] != (1,) and bool(beside(graph, x.shape, [x], dim))
        apart = x.shape[dim] <= 64 and (len(runs) == x.shape[dim] or spread)
        if x.shape[dim] > 1 and (apart or opcode == "prod"):
            parts = x.ids.split(1, dim)  # elements of different positions, or of different tensors: one by one
            x = Value(parts[0])
            for part in parts[1:]:
                x = mul(graph, x, Value(part)) if opcode == "prod" else graph.map(_FOLD[opcode], x, Value(part))
        else:
            x = Value(over(graph, opcode, x, dim).ids.narrow(dim, 0, 1))
    return x if keepdim else Value(x.ids.squeeze(dims))


def _count(x: Value, dims) -> int:
    rank = x.ids.dim()
    dims = [dims] if isinstance(dims, int) else (list(dims) if dims else range(rank))
    return int(torch.tensor([x.shape[d % rank] for d in dims]).prod())


@register_rule(aten.sum.dim_IntList)
def sum_(graph: Graph, x: Value, dims, keepdim: bool = False, **_) -> Value:
    return reduce(graph, "sum", x, dims, keepdim)


@register_rule(aten.mean.dim)
def mean(graph: Graph, x: Value, dims, keepdim: bool = False, **_) -> Value:
    return graph.map("div", reduce(graph, "sum", x, dims, keepdim), constant(_count(x, dims)))


@register_rule(aten.sum.default)
def sum_all(graph: Graph, x: Value, **_) -> Value:
    return reduce(graph, "sum", x, None, False)


@register_rule(aten.mean.default)
def mean_all(graph: Graph, x: Value, **_) -> Value:
    return mean(graph, x, None)


@register_rule(aten.amax.default)
def amax(graph: Graph, x: Value, dims=(), keepdim: bool = False) -> Value:
    return reduce(graph, "amax", x, dims, keepdim)


@register_rule(aten.amin.default)
def amin(graph: Graph, x: Value, dims=(), keepdim: bool = False) -> Value:
    return reduce(graph, "amin", x, dims, keepdim)


@register_rule(aten.max.dim)
def max_dim(graph: Graph, x: Value, dim: int, keepdim: bool = False):
    return amax(graph, x, dim, keepdim), argmax(graph, x, dim, keepdim)


@register_rule(aten.min.dim)
def min_dim(graph: Graph, x: Value, dim: int, keepdim: bool = False):
    return amin(graph, x, dim, keepdim), argmin(graph, x, dim, keepdim)


@register_rule(aten.max.default)
def max_all(graph: Graph, x: Value) -> Value:
    return amax(graph, x)


@register_rule(aten.min.default)
def min_all(graph: Graph, x: Value) -> Value:
    return amin(graph, x)


@register_rule(aten.argmax.default)
def argmax(graph: Graph, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    return _first(graph, x, amax, dim, keepdim)


@register_rule(aten.argmin.default)
def argmin(graph: Graph, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    return _first(graph, x, amin, dim, keepdim)


def _first(graph: Graph, x: Value, reduction: Callable, dim: int | None, keepdim: bool) -> Value:
    """Returns the first place along ``dim`` of what the reduction chooses."""
    if dim is None:
        raise UnsupportedOperator(
            graph,
            "argmax or argmin over all elements",
            "mixes samples and positions",
            "Name a dimension, the channels'",
        )
    dim = dim % x.ids.dim()
    places = torch.arange(x.shape[dim]).reshape([-1 if d == dim else 1 for d in range(x.ids.dim())])
    chosen = graph.map("eq", x, reduction(graph, x, dim, True))
    return amin(graph, graph.map("where", chosen, Constant.literal(places), constant(x.shape[dim])), dim, keepdim)


@register_rule(aten.prod.dim_int)
def prod(graph: Graph, x: Value, dim: int, keepdim: bool = False, **_) -> Value:
    return reduce(graph, "prod", x, dim, keepdim)


@register_rule(aten.any.dim, aten.any.dims, aten.any.default)
def any_(graph: Graph, x: Value, dims=None, keepdim: bool = False) -> Value:
    return reduce(graph, "amax", graph.map("ne", x, constant(0.0)), dims, keepdim)


@register_rule(aten.all.dim, aten.all.dims, aten.all.default)
def all_(graph: Graph, x: Value, dims=None, keepdim: bool = False) -> Value:
    return reduce(graph, "amin", graph.map("ne", x, constant(0.0)), dims, keepdim)


@register_rule(aten.var.correction, aten.var.dim)
def var(graph: Graph, x: Value, dims=None, unbiased=True, keepdim: bool = False, *, correction=None) -> Value:
    correction = int(unbiased) if correction is None else correction
    centred = graph.map("sub", x, mean(graph, x, dims, True))
    squares = reduce(graph, "sum", graph.map("mul", centred, centred), dims, keepdim)
    return mul(graph, squares, 1.0 / (_count(x, dims) - correction))


@register_rule(aten.var_mean.correction, aten.var_mean.dim)
def var_mean(graph: Graph, x: Value, dims=None, unbiased=True, keepdim: bool = False, *, correction=None):
    return var(graph, x, dims, unbiased, keepdim, correction=correction), mean(graph, x, dims, keepdim)


@register_rule(aten.std.correction, aten.std.dim)
def std(graph: Graph, x: Value, dims=None, unbiased=True, keepdim: bool = False, *, correction=None) -> Value:
    return graph.map("sqrt", var(graph, x, dims, unbiased, keepdim, correction=correction))


@register_rule(aten.linalg_vector_norm.default)
def vector_norm(graph: Graph, x: Value, order=2, dims=None, keepdim: bool = False, **_) -> Value:
    if order in (1, math.inf):
        return reduce(graph, "sum" if order == 1 else "amax", graph.map("abs", x), dims, keepdim)
    if order != 2:
        raise UnsupportedOperator(graph, f"a vector norm of order {order}", change="Use order 1, 2 or infinity")
    return graph.map("sqrt", reduce(graph, "sum", graph.map("mul", x, x), dims, keepdim))


@register_rule(aten.softmax.int, aten._softmax.default)
def softmax(graph: Graph, x: Value, dim: int, *_, **__) -> Value:
    hidden = graph.is_value(x.ids, -math.inf)
    if not hidden.any():
        exp = graph.map("exp", graph.map("sub", x, over(graph, "amax", x, dim)))
        return graph.map("div", exp, over(graph, "sum", exp, dim))
    peak = reduce(graph, "amax", x, dim, True)
    exp = graph.map("exp", graph.map("sub", x, peak))
    hidden = hidden & ~hidden.all(dim, keepdim=True)  # exp(-inf) is 0; where all is hidden, PyTorch's softmax is NaN
    exp = Value(torch.where(hidden, 0, exp.ids))
    return div(graph, exp, reduce(graph, "sum", exp, dim, True))


@register_rule(aten.log_softmax.int, aten._log_softmax.default)
def log_softmax(graph: Graph, x: Value, dim: int, *_, **__) -> Value:
    shifted = graph.map("sub", x, over(graph, "amax", x, dim))
    return graph.map("sub", shifted, graph.map("log", over(graph, "sum", graph.map("exp", shifted), dim)))


@register_rule(aten.logsumexp.default)
def logsumexp(graph: Graph, x: Value, dims, keepdim: bool = False) -> Value:
    peak = reduce(graph, "amax", x, dims, True)
    infinite = graph.map("eq", graph.map("abs", peak), constant(math.inf))
    peak = graph.map("where", infinite, constant(0.0), peak)
    total = reduce(graph, "sum", graph.map("exp", graph.map("sub", x, peak)), dims, True)
    out = graph.map("add", peak, graph.map("log", total))
    return out if keepdim else Value(out.ids.squeeze(dims))


def _normalise(graph: Graph, x: Value, dim: int, group: int, eps: float) -> Value:
    centred = graph.map("sub", x, mul(graph, over(graph, "sum", x, dim, group), 1.0 / group))
    variance = mul(graph, over(graph, "sum", graph.map("mul", centred, centred), dim, group), 1.0 / group)
    return graph.map("mul", centred, graph.map("rsqrt", graph.map("addc", variance, x=eps)))


def _affine(graph: Graph, x: Value, weight: Constant | None, bias: Constant | None, shape) -> Value:
    if weight is not None:
        x = mul(graph, x, derive(lambda w: w.reshape(shape), weight))
    return x if bias is None else add(graph, x, derive(lambda b: b.reshape(shape), bias))


@register_rule(aten.layer_norm.default)
def layer_norm(graph: Graph, x: Value, shape, weight=None, bias=None, eps: float = 1e-5, *_) -> Value:
    if len(shape) != 1:
        raise UnsupportedOperator(
            graph, f"layer_norm over {tuple(shape)}", "normalises over positions, later ones too", _OVER_CHANNELS
        )
    return _affine(graph, _normalise(graph, x, -1, shape[0], eps), weight, bias, (-1,))


@register_rule(aten.native_layer_norm.default)
def native_layer_norm(graph: Graph, x: Value, shape, weight, bias, eps: float):
    return layer_norm(graph, x, shape, weight, bias, eps), None, None


@register_rule(aten.rms_norm.default)
def rms_norm(graph: Graph, x: Value, shape, weight=None, eps=None) -> Value:
    if len(shape) != 1:
        raise UnsupportedOperator(
            graph, f"rms_norm over {tuple(shape)}", "normalises over positions, later ones too", _OVER_CHANNELS
        )
    squares = mul(graph, over(graph, "sum", graph.map("mul", x, x), -1), 1.0 / shape[0])
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    return _affine(graph, graph.map("mul", x, graph.map("rsqrt", add(graph, squares, eps))), weight, None, (-1,))


@register_rule(aten.group_norm.default)
def group_norm(graph: Graph, x: Value, groups: int, weight=None, bias=None, eps: float = 1e-5, *_) -> Value:
    if x.ids[0, 0].numel() > 1:
        raise UnsupportedOperator(
            graph, "group_norm", "takes its statistics over positions, later ones too", _OVER_CHANNELS
        )
    shape = (1, -1, *[1] * (x.ids.dim() - 2))
    return _affine(graph, _normalise(graph, x, 1, x.shape[1] // groups, eps), weight, bias, shape)


@register_rule(aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
def embedding_bag(
    graph: Graph, table: Constant, x: Value, offsets: Constant, scale_grad=False, mode: int = 0, sparse=False,
    weights=None, include_last_offset: bool = False, padding: int = -1,
):  # fmt: skip
    """The sum, the mean or the maximum of rows, in bags of one size."""
    starts = offsets.tensor[: len(offsets.tensor) - include_last_offset].tolist()
    bags, size = len(starts), len(x.ids) // max(len(starts), 1)
    if not size or weights is not None or padding >= 0 or starts != [*range(0, bags * size, size)]:
        raise UnsupportedOperator(
            graph,
            "embedding_bag with bags of several sizes, with weights or padding",
            change="Use nn.Embedding, and sum what it gives",
        )
    rows = Value(embedding(graph, table, x).ids.reshape(bags, size, -1))
    found = reduce(graph, "amax" if mode == 2 else "sum", rows, 1, False)
    return (mul(graph, found, 1.0 / size) if mode == 1 else found), None, None, None
