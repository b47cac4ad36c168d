"""Order among channels: sorted values, places among boundaries, elements at computed places"""

from __future__ import annotations

import math

import torch

from fastgen.generate.errors import UnsupportedOperator
from fastgen.generate.frontend.rules.elementwise import constant
from fastgen.generate.frontend.rules.reduction import reduce
from fastgen.generate.frontend.rules.registry import register_rule
from fastgen.generate.ir.graph import Constant, Graph, Value, derive

aten = torch.ops.aten
_MOST = 64
"""Elements of one line; each is compared with every other."""
_MOST_BOUNDARIES = 512


def _line(graph: Graph, x: Value, dim: int) -> Value:
    """Returns the ids with the line as last dimension, which a scalar has, too."""
    ids = x.ids.reshape(1) if x.ids.dim() == 0 else x.ids.movedim(dim, -1)
    if ids.shape[-1] > _MOST:
        raise UnsupportedOperator(
            graph,
            f"an order among {ids.shape[-1]} elements",
            reason=f"has a rule for at most {_MOST}",
            change="Order fewer channels, or mask by a threshold",
        )
    return Value(ids)


def _element(line: Value, number: int) -> Value:
    return Value(line.ids[..., number : number + 1])


def _places(graph: Graph, line: Value, descending: bool) -> Value:
    """Returns the place of every element in a stable order of its line, in which NaN is greater than all numbers."""
    n = line.shape[-1]
    total, nan = None, graph.map("ne", line, line)
    for number in range(n):
        other, other_nan = _element(line, number), _element(nan, number)
        tie = Constant.literal((torch.arange(n) > number).float())  # of equal elements, the first comes first
        pair = (line, other) if descending else (other, line)
        before = graph.map("where", tie, graph.map("le", *pair), graph.map("lt", *pair))
        above, below = (other_nan, nan) if descending else (nan, other_nan)
        before = graph.map("where", below, constant(0.0), before)
        before = graph.map("where", above, graph.map("where", below, tie, constant(1.0)), before)
        total = before if total is None else graph.map("add", total, before)
    return total


def _at(graph: Graph, elements: list, places: list, wanted: Value | Constant) -> Value:
    """Returns of the elements ``[..., 1]`` those whose places are the wanted ones, ``[..., m]``."""
    found = elements[0]
    for element, place in zip(elements, places, strict=True):
        found = graph.map("where", graph.map("eq", wanted, place), element, found)
    return found


def _elements(line: Value) -> list[Value]:
    return [_element(line, number) for number in range(line.shape[-1])]


def _sorted(graph: Graph, x: Value, dim: int, descending: bool, count: int, indices: bool):
    line = _line(graph, x, dim)
    places, wanted = _elements(_places(graph, line, descending)), Constant.literal(torch.arange(count).float())

    def back(found: Value) -> Value:
        return Value(found.ids.reshape(()) if x.ids.dim() == 0 else found.ids.movedim(-1, dim))

    values = back(_at(graph, _elements(line), places, wanted))
    if not indices:
        return values, None
    return values, back(_at(graph, [constant(number) for number in range(line.shape[-1])], places, wanted))


@register_rule(aten.sort.default)
def sort(graph: Graph, x: Value, dim: int = -1, descending: bool = False):
    """The values; among equal ones PyTorch does not say which index comes first."""
    return _sorted(graph, x, dim, descending, _length(x, dim), indices=False)


@register_rule(aten.sort.stable)
def stable_sort(graph: Graph, x: Value, stable: bool | None = None, dim: int = -1, descending: bool = False):
    return _sorted(graph, x, dim, descending, _length(x, dim), indices=bool(stable))


@register_rule(aten.topk.default)
def topk(graph: Graph, x: Value, k: int, dim: int = -1, largest: bool = True, *_):
    """The values, in their order; among equal ones PyTorch does not say whose index it gives."""
    return _sorted(graph, x, dim, largest, k, indices=False)


@register_rule(aten.kthvalue.default)
def kthvalue(graph: Graph, x: Value, k: int, dim: int = -1, keepdim: bool = False):
    line = _line(graph, x, dim)
    found = _chosen(graph, line, k - 1)
    return _one(x, found, dim, keepdim), None


@register_rule(aten.median.dim)
def median(graph: Graph, x: Value, dim: int = -1, keepdim: bool = False):
    line = _line(graph, x, dim)
    found = _chosen(graph, line, (line.shape[-1] - 1) // 2)
    unordered = reduce(graph, "amax", graph.map("ne", line, line), -1, True)
    return _one(x, graph.map("where", unordered, constant(math.nan), found), dim, keepdim), None


def _chosen(graph: Graph, line: Value, place: int) -> Value:
    """Returns the element ``[..., 1]`` at a place of the ascending order."""
    places = _elements(_places(graph, line, descending=False))
    return _at(graph, _elements(line), places, Constant.literal(torch.tensor([float(place)])))


def _one(x: Value, found: Value, dim: int, keepdim: bool) -> Value:
    """Returns what is found ``[..., 1]`` of a line along ``dim``, as a reduction does."""
    if x.ids.dim() == 0:
        return Value(found.ids.reshape(()))
    return Value(found.ids.movedim(-1, dim) if keepdim else found.ids[..., 0])


def _length(x: Value, dim: int) -> int:
    return x.shape[dim] if x.ids.dim() else 1


# ---- boundaries


def _counted(graph: Graph, x: Value, boundaries: Constant, right: bool) -> Value:
    """Returns how many of the boundaries ``[K]`` are below x (at most x, where ``right``); all, for NaN."""
    if boundaries.tensor.dim() != 1:
        raise UnsupportedOperator(
            graph,
            f"a search among boundaries {list(boundaries.tensor.shape)}",
            reason="has a rule for one line of boundaries only",
            change="Pass boundaries of one dimension",
        )
    graph.assume(boundaries.recipe, lambda b: bool((b[1:] >= b[:-1]).all()))
    if not bool((boundaries.tensor[1:] >= boundaries.tensor[:-1]).all()):
        raise UnsupportedOperator(
            graph, "a search among boundaries that are not sorted", reason="has no rule", change="Sort the boundaries"
        )
    count = len(boundaries.tensor)
    if count > _MOST_BOUNDARIES:
        raise UnsupportedOperator(
            graph,
            f"a search among {count} boundaries",
            reason=f"has a rule for at most {_MOST_BOUNDARIES}",
            change="Compute the place by arithmetic, such as a floor, where the boundaries are even",
        )
    found = graph.map("mulc", graph.map("ne", x, x), x=0.0)
    for number in range(count):
        # PyTorch goes on while the boundary is not beyond x, so that NaN is beyond all
        beyond = graph.map("lt" if right else "le", x, derive(lambda b, n=number: b[n], boundaries))
        found = graph.map("add", found, graph.map("eq", beyond, constant(0.0)))
    return found


@register_rule(aten.bucketize.Tensor)
def bucketize(graph: Graph, x: Value, boundaries: Constant, *, right: bool = False, **_) -> Value:
    return _counted(graph, x, boundaries, right)


@register_rule(aten.searchsorted.Tensor)
def searchsorted(
    graph: Graph, boundaries: Constant, x: Value, *, right: bool = False, side: str | None = None, sorter=None, **_
) -> Value:
    if sorter is not None:
        boundaries = derive(lambda b, at: b[at], boundaries, sorter)
    return _counted(graph, x, boundaries, right or side == "right")


# ---- computed places


def gather_computed(graph: Graph, x: Value, dim: int, where: Value) -> Value:
    """``x`` gathered along ``dim`` at places that depend on the input."""
    dim = dim % x.ids.dim()
    kept = tuple(slice(None) if d == dim else slice(n) for d, n in enumerate(where.shape))
    line = _line(graph, Value(x.ids[kept]), dim)
    places = [constant(number) for number in range(line.shape[-1])]
    return Value(_at(graph, _elements(line), places, Value(where.ids.movedim(dim, -1))).ids.movedim(-1, dim))
