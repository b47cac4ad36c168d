"""Pooling: a sum or a maximum over shifted views."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from fastgen.generate.errors import UnsupportedOperator
from fastgen.generate.frontend.rules.elementwise import constant
from fastgen.generate.frontend.rules.registry import register_rule
from fastgen.generate.ir.graph import Graph, Value

aten = torch.ops.aten


def _windows(graph: Graph, x: Value, kernel, stride, padding, dilation, ceil: bool, fill: int) -> list[Value]:
    """Returns for every place of the kernel the elements that it meets; ``fill`` is the id of what pads."""
    n = len(kernel)
    if ceil:
        raise UnsupportedOperator(graph, "pooling with ceil_mode=True")
    stride = list(stride) or kernel
    pads = [p for size in reversed(_each(padding, n)) for p in (size, size)]
    ids = torch.nn.functional.pad(x.ids, pads, value=fill)
    found = []
    for at in itertools.product(*[range(k) for k in kernel]):
        part = ids
        for d, (place, k, s, step) in enumerate(zip(at, kernel, _each(stride, n), _each(dilation, n), strict=True)):
            dim = ids.dim() - n + d
            last = ids.shape[dim] - step * (k - 1) - 1
            part = part[(*[slice(None)] * dim, slice(place * step, place * step + last + 1, s))]
        found.append(Value(part))
    return found


def _each(sizes: int | Sequence[int], n: int) -> list[int]:
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    return sizes * n if len(sizes) == 1 else sizes


@register_rule(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
def avg_pool(
    graph: Graph, x: Value, kernel, stride=(), padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
) -> Value:
    if any(_each(padding, 1)) and not count_include_pad:
        raise UnsupportedOperator(graph, "avg_pool with padding and count_include_pad=False")
    first, *others = _windows(graph, x, kernel, stride, padding, 1, ceil_mode, 0)
    for part in others:
        first = graph.map("add", first, part)
    return graph.map("div", first, constant(divisor_override or math.prod(kernel)))


@register_rule(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
def max_pool(graph: Graph, x: Value, kernel, stride=(), padding=0, dilation=1, ceil_mode=False) -> Value:
    first, *others = _windows(graph, x, kernel, stride, padding, dilation, ceil_mode, graph.value_id(-math.inf))
    for part in others:
        first = graph.map("max", first, part)
    return first
