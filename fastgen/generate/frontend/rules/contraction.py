"""Contractions over channels: convolutions, linear maps, embeddings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from fastgen.generate.errors import UnsupportedOperator
from fastgen.generate.frontend.rules.elementwise import add, mul
from fastgen.generate.frontend.rules.registry import RULES, register_rule
from fastgen.generate.ir.channels import Table, beside, channel_runs
from fastgen.generate.ir.graph import Constant, Graph, Recipe, Value, derive

aten = torch.ops.aten
TWO_TENSORS = "a product of two tensors neither of which is constant (attention, or weights made from a context)"


def channel_inputs(graph: Graph, ids: torch.Tensor) -> list[tuple[int, int, int, np.ndarray]]:
    """Runs (channel, stride, length, channels in order) of ids ``[..., channels]``, channels sorted by slot."""
    table = Table.of(graph, ids)
    order = np.arange(table.ids.shape[1])
    if table.whole is None:
        middle = table.ids[table.ids.shape[0] // 2].numpy()
        if (middle > 0).all() and (np.diff(middle) < 0).any():
            order = np.argsort(middle, kind="stable")
            table = Table(table.ids[:, torch.from_numpy(order)])
    return [
        (int(order[start]), strides[0], length, order[start : start + length])
        for start, length, strides in channel_runs(graph, [table])
    ]


def _matrix(weight: Constant, view) -> Recipe:
    return derive(view, weight).recipe


def _bias(bias: Constant | None) -> Recipe | None:
    return derive(lambda t: t.reshape(-1), bias).recipe if bias is not None else None


# ---- linear


def contract_last(graph: Graph, x: Value, matrix: Recipe, bias: Recipe | None = None) -> Value:
    """``x @ matrix + bias`` over the last dimension."""
    for dim in beside(graph, x.shape, [x], x.ids.dim() - 1):  # heads: a product each
        parts = [contract_last(graph, Value(part), matrix, bias).ids for part in x.ids.unbind(dim)]
        return Value(torch.stack(parts, dim))
    table = x.ids.reshape(-1, x.shape[-1])
    inputs = [
        (table[:, first].contiguous().numpy(), stride, length, rows, False)
        for first, stride, length, rows in channel_inputs(graph, x.ids)
    ]
    return graph.contract(x.shape[:-1], inputs, matrix, bias)


@register_rule(aten.linear.default)
def linear(graph: Graph, x: Value, weight: Constant, bias: Constant | None = None) -> Value:
    return contract_last(graph, x, _matrix(weight, lambda w: w.t()), _bias(bias))


def matmul(graph: Graph, a: Value | Constant, b: Value | Constant) -> Value:
    if isinstance(a, Value) and isinstance(b, Value):
        raise UnsupportedOperator(graph, TWO_TENSORS)
    if isinstance(a, Constant):
        if a.tensor.dim() < 2 or b.ids.dim() < 2:
            raise UnsupportedOperator(graph, "a matrix product with a vector on its left")
        turned = derive(lambda t: t.transpose(-1, -2), a)
        return Value(matmul(graph, Value(b.ids.transpose(-1, -2)), turned).ids.transpose(-1, -2))
    if b.tensor.dim() <= 2:
        out = contract_last(graph, a, _matrix(b, lambda w: w.reshape(w.shape[0], -1)))
        return out if b.tensor.dim() == 2 else Value(out.ids[..., 0])
    batch = torch.broadcast_shapes(a.shape[:-2], b.tensor.shape[:-2])
    ids = a.ids.expand(*batch, *a.shape[-2:])
    for dim in range(-b.tensor.dim(), -2):
        if b.tensor.shape[dim] > 1:  # a matrix for each of it
            matrices = [derive(lambda w, n=n, dim=dim: w.select(dim, n), b) for n in range(b.tensor.shape[dim])]
            pairs = zip(ids.unbind(dim), matrices, strict=True)
            return Value(torch.stack([matmul(graph, Value(part), matrix).ids for part, matrix in pairs], dim))
    return matmul(graph, Value(ids), derive(lambda w: w.reshape(w.shape[-2:]), b))


def addmm(graph: Graph, c: Value | Constant, a: Value | Constant, b: Value | Constant, *, beta=1, alpha=1) -> Value:
    return scaled_sum(graph, c, matmul(graph, a, b), beta, alpha)


def scaled_sum(graph: Graph, c: Value | Constant, product: Value, beta: float, alpha: float) -> Value:
    """``beta * c + alpha * product``"""
    product = product if alpha == 1 else mul(graph, product, alpha)
    c = c if beta == 1 else (mul(graph, c, beta) if isinstance(c, Value) else derive(lambda t: t * beta, c))
    return add(graph, product, c)


def einsum(graph: Graph, equation: str, operands: Sequence[Value | Constant], **_) -> Value:
    left, _, out = equation.replace(" ", "").partition("->")
    names = left.split(",")
    if len(names) != 2 or "->" not in equation or "." in equation or any(len(set(n)) < len(n) for n in (*names, out)):
        raise UnsupportedOperator(graph, f"einsum {equation!r}; supported: two tensors, each index once, with '->'")
    first = 0 if isinstance(operands[0], Value) else 1
    x, w, of_x, of_w = operands[first], operands[1 - first], names[first], names[1 - first]
    if isinstance(w, Value) and set(of_x) != set(of_w):
        raise UnsupportedOperator(graph, f"einsum {equation!r}: {TWO_TENSORS}")
    summed = [c for c in of_x if c not in out]
    columns = [c for c in of_w if c not in summed]
    kept = [c for c in of_x if c not in summed]
    shared = [c for c in columns if c in kept]
    if isinstance(w, Constant) and shared and summed:
        return _each_of(graph, shared[0], x, w, of_x, of_w, out)
    if isinstance(w, Value) or not summed or not set(summed) <= set(of_w):
        return multiply_and_sum(graph, x, w, of_x, of_w, out)
    ids = x.ids.permute([of_x.index(c) for c in kept + summed])
    shape = [ids.shape[i] for i in range(len(kept))]
    width = [w.tensor.shape[of_w.index(c)] for c in columns]

    def matrix(t):
        t = t.permute([of_w.index(c) for c in summed + columns])
        return t.reshape(int(np.prod(t.shape[: len(summed)])), -1)

    flat = contract_last(graph, Value(ids.reshape(*shape, -1)), _matrix(w, matrix)).ids.reshape(*shape, *width)
    return Value(flat.permute([(kept + columns).index(c) for c in out]))


def _each_of(graph: Graph, index: str, x: Value, w: Constant, of_x: str, of_w: str, out: str) -> Value:
    """Returns the einsum of two tensors that share an index of the result, heads say: a product for each of it."""
    at, parts = of_w.index(index), []
    equation = f"{of_x.replace(index, '')},{of_w.replace(index, '')}->{out.replace(index, '')}"
    for number, ids in enumerate(x.ids.unbind(of_x.index(index))):
        part = derive(lambda t, number=number: t.select(at, number), w)
        parts.append(einsum(graph, equation, [Value(ids), part]).ids)
    return Value(torch.stack(parts, out.index(index)))


def multiply_and_sum(graph: Graph, x: Value, w: Value | Constant, of_x: str, of_w: str, out: str) -> Value:
    """Returns the product of two tensors elementwise, then the sum over the indices that the result lacks."""
    indices = out + "".join(sorted(set(of_x + of_w) - set(out)))

    def aligned(names: str, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.permute([names.index(c) for c in indices if c in names])
        for place, c in enumerate(indices):
            tensor = tensor if c in names else tensor.unsqueeze(place)
        return tensor

    other = Value(aligned(of_w, w.ids)) if isinstance(w, Value) else derive(lambda t: aligned(of_w, t), w)
    product = mul(graph, Value(aligned(of_x, x.ids)), other)
    gone = list(range(len(out), len(indices)))
    return RULES[aten.sum.dim_IntList](graph, product, gone) if gone else product


@register_rule(aten.embedding.default)
def embedding(graph: Graph, weight: Constant, x: Value, *_, **__) -> Value:
    table = x.ids.reshape(-1).contiguous().numpy()
    inputs = [(table, 1, 1, np.arange(weight.tensor.shape[0]), True)]
    return graph.contract(x.shape, inputs, _matrix(weight, lambda w: w), None)


def lookup(graph: Graph, table: Constant, x: Value) -> Value:
    """``table[x]`` along the first dimension of ``table``: an embedding."""
    rows = embedding(graph, derive(lambda t: t.reshape(t.shape[0], -1), table), x)
    return Value(rows.ids.reshape(*x.shape, *table.tensor.shape[1:]))


@register_rule(aten.one_hot.default)
def one_hot(graph: Graph, x: Value, classes: int) -> Value:
    if classes < 1:
        raise UnsupportedOperator(graph, "one_hot without the number of classes")
    ids = x.ids.reshape(-1).contiguous().numpy()
    eye = Recipe((), lambda: torch.eye(classes, dtype=torch.float32))
    return graph.contract(x.shape, [(ids, 1, 1, np.arange(classes), True)], eye, None, one_hot=True)


# ---- convolutions


def _taps(
    size: int, out: int, kernel: int, stride: int, padding: int, dilation: int, transposed: bool
) -> list[np.ndarray]:
    """Returns for each kernel position the input index of every output index, -1 where there is none."""
    o = np.arange(out)
    taps = []
    for k in range(kernel):
        if transposed:
            at = o + padding - k * dilation
            index = np.where((at % stride == 0) & (at >= 0) & (at // stride < size), at // stride, -1)
        else:
            at = o * stride - padding + k * dilation
            index = np.where((at >= 0) & (at < size), at, -1)
        taps.append(index)
    return taps


def _take(ids: np.ndarray, indices: Sequence[np.ndarray]) -> np.ndarray:
    """Indexes the trailing dimensions one by one, 0 at index -1."""
    first = ids.ndim - len(indices)
    for d, index in enumerate(indices):
        taken = np.take(ids, index, axis=first + d)
        if (index < 0).any():
            shape = [1] * taken.ndim
            shape[first + d] = -1
            taken = np.where((index < 0).reshape(shape), 0, taken)
        ids = taken
    return ids


def convolution(
    graph: Graph,
    x: Value,
    weight: Constant,
    bias: Constant | None,
    stride,
    padding,
    dilation,
    transposed,
    output_padding,
    groups,
) -> Value:
    kernel = weight.tensor.shape[2:]
    n = len(kernel)
    stride, padding, dilation, output_padding = (
        [v] * n if isinstance(v, int) else list(v) * (n if len(v) == 1 else 1)
        for v in (stride, padding, dilation, output_padding)
    )
    unbatched = x.ids.dim() == n + 1
    ids = x.ids.unsqueeze(0) if unbatched else x.ids
    size = ids.shape[2:]
    if transposed:
        out = [
            (size[d] - 1) * stride[d] - 2 * padding[d] + dilation[d] * (kernel[d] - 1) + output_padding[d] + 1
            for d in range(n)
        ]
    else:
        out = [(size[d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in range(n)]
    taps = [_taps(size[d], out[d], kernel[d], stride[d], padding[d], dilation[d], transposed) for d in range(n)]
    per_group = ids.shape[1] // groups
    if groups > 1 and per_group <= 2 and not transposed:
        result = _depthwise(graph, ids, weight, bias, taps, groups, out)
        return Value(result.ids[0]) if unbatched else result
    results = []
    for group in range(groups):
        part = ids[:, group * per_group : (group + 1) * per_group]

        def matrix(w, group=group):
            if transposed:
                w = w[group * per_group : (group + 1) * per_group]
                return w.permute(*range(2, 2 + n), 0, 1).reshape(-1, w.shape[1])
            w = w.reshape(groups, -1, *w.shape[1:])[group]
            return w.permute(*range(2, 2 + n), 1, 0).reshape(-1, w.shape[0])

        part_bias = (
            derive(lambda b, group=group: b.reshape(groups, -1)[group], bias).recipe if bias is not None else None
        )
        channels = channel_inputs(graph, part.movedim(1, -1))
        runs = [(part[:, first].numpy(), stride_, length, rows) for first, stride_, length, rows in channels]
        recipe = _matrix(weight, matrix)
        used = _used_taps(recipe(graph.constants), per_group)
        if not used.all():
            graph.assume(recipe, lambda w, used=used: not (_used_taps(w, per_group) & ~used).any())
        inputs = []
        for number, at in enumerate(itertools.product(*[range(k) for k in kernel])):
            if used[number]:
                index = [taps[d][k] for d, k in enumerate(at)]
                inputs += [
                    (_take(first, index).reshape(-1), stride_, length, number * per_group + rows, False)
                    for first, stride_, length, rows in runs
                ]
        results.append(graph.contract((ids.shape[0], *out), inputs, recipe, part_bias).ids.movedim(-1, 1))
    result = results[0] if groups == 1 else torch.cat(results, 1)
    return Value(result[0] if unbatched else result)


def _used_taps(matrix: torch.Tensor, channels: int) -> torch.Tensor:
    """Returns which kernel positions of a matrix ``[positions * channels, columns]`` have a weight that is not zero."""
    return (matrix != 0).any(1).reshape(-1, channels).any(1)


def _depthwise(
    graph: Graph, ids, weight: Constant, bias: Constant | None, taps, groups: int, out: Sequence[int]
) -> Value:
    """Computes convolutions of few channels a group as sums of products, lane by lane."""
    n, columns = len(out), weight.tensor.shape[0]
    per_group = ids.shape[1] // groups
    lanes = ids.reshape(ids.shape[0], groups, per_group, *ids.shape[2:]).repeat_interleave(columns // groups, 1)
    total = None
    for at in itertools.product(*[range(len(t)) for t in taps]):
        for c in range(per_group):
            weights = derive(lambda w, at=at, c=c: w[(slice(None), c, *at)].reshape(1, -1, *[1] * n), weight)
            if not weights.tensor.any():
                graph.assume(weights.recipe, lambda w: not w.any())
                continue
            tap = torch.from_numpy(_take(lanes[:, :, c].numpy(), [taps[d][k] for d, k in enumerate(at)]))
            if not tap.any():  # all padding
                graph.padding_only = True
                continue
            term = mul(graph, Value(tap), weights)
            total = term if total is None else add(graph, total, term)
    if bias is not None:
        total = add(graph, total, derive(lambda b: b.reshape(1, -1, *[1] * n), bias))
    return total


@register_rule(aten.convolution.default)
def convolution_default(graph, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    return convolution(graph, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)


@register_rule(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
def conv(graph: Graph, x: Value, weight: Constant, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Value:
    return convolution(graph, x, weight, bias, stride, padding, dilation, False, 0, groups)


@register_rule(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
def conv_padding(
    graph: Graph, x: Value, weight: Constant, bias=None, stride=1, padding="valid", dilation=1, groups=1
) -> Value:
    kernel = weight.tensor.shape[2:]
    dilations = (
        [dilation] * len(kernel) if isinstance(dilation, int) else list(dilation) * (len(kernel) // len(dilation))
    )
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        pads = [p for t in reversed(total) for p in (t // 2, t - t // 2)]
        x = Value(torch.nn.functional.pad(x.ids, pads))
    return convolution(graph, x, weight, bias, stride, 0, dilation, False, 0, groups)


@register_rule(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def conv_transpose(graph, x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1) -> Value:
    return convolution(graph, x, weight, bias, stride, padding, dilation, True, output_padding, groups)
