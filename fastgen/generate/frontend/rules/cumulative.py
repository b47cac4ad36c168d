"""Cumulative operators over positions: scans."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastgen.generate.errors import UnsupportedOperator
from fastgen.generate.frontend.rules.contraction import contract_last
from fastgen.generate.frontend.rules.elementwise import logaddexp
from fastgen.generate.frontend.rules.registry import register_rule
from fastgen.generate.frontend.rules.scan import scan
from fastgen.generate.ir.channels import Table, channel_runs
from fastgen.generate.ir.graph import Constant, Graph, Recipe, Value

aten = torch.ops.aten
_LEAST = torch.finfo(torch.float32).min


_FEW = 256
"""Elements that are joined one by one, where they neither are channels nor follow one another in time."""


def _over_positions(graph: Graph, x: Value, dim: int) -> bool:
    """Whether the elements along a dimension follow one another in time.

    Raises:
        UnsupportedOperator: they are many that do not, and no channels of one position.
    """
    lines = x.ids.movedim(dim, -1)
    if len(channel_runs(graph, [Table.of(graph, lines)])) < x.shape[dim]:
        return False
    line = lines.reshape(-1, x.shape[dim])[lines.numel() // x.shape[dim] // 2].numpy()
    first, last = (graph.times(graph.decode(line[[at]], 1, 1)[0], 1)[0][0] for at in (0, -1))
    if last <= first and x.shape[dim] > _FEW:
        raise UnsupportedOperator(graph, f"a cumulative operator over {x.shape[dim]} elements of mixed positions")
    return bool(last > first)


def _scanned(graph: Graph, x: Value, dim: int, first: list[float], step: Callable[..., list[Value]]) -> list[Value]:
    """Returns the states that ``step(x, states)`` makes along ``dim``; all else of a position is its channels."""
    dim = dim % x.ids.dim()
    moved = x.ids.movedim(dim, 1 if x.ids.dim() > 1 else 0)
    if moved.dim() == 1:
        moved = moved.unsqueeze(0)
    flat = Value(moved.reshape(*moved.shape[:2], -1))
    batch, length, channels = flat.shape
    initial = [Constant.literal(torch.full((batch, channels), value)) for value in first]
    states = scan(graph, lambda before: step(flat, *before), initial, length)
    ids = [state.ids.reshape(moved.shape) for state in states]
    return [Value(i.movedim(1, dim) if x.ids.dim() > 1 else i[0]) for i in ids]


def _joined(x: Value, dim: int, join: Callable[[Value, Value], Value]) -> Value:
    """Joins every channel with what the ones before it came to."""
    parts = [Value(part) for part in x.ids.split(1, dim)]
    for number in range(1, len(parts)):
        parts[number] = join(parts[number - 1], parts[number])
    return Value(torch.cat([part.ids for part in parts], dim))


@register_rule(aten.cumsum.default)
def cumsum(graph: Graph, x: Value, dim: int, **_) -> Value:
    """Over channels a product with a triangle of ones; over positions a sum that grows from one to the next."""
    if len(channel_runs(graph, [Table.of(graph, x.ids.movedim(dim, -1))])) < x.shape[dim]:
        size = x.shape[dim]
        ones = Recipe((), lambda: torch.ones(size, size).triu())
        return Value(contract_last(graph, Value(x.ids.movedim(dim, -1)), ones).ids.movedim(-1, dim))
    if not _over_positions(graph, x, dim):
        return _joined(x, dim, lambda a, b: graph.map("add", a, b))
    return _scanned(graph, x, dim, [0.0], lambda x, total: [graph.map("add", total, x)])[0]


@register_rule(aten.cumprod.default)
def cumprod(graph: Graph, x: Value, dim: int, **_) -> Value:
    if not _over_positions(graph, x, dim):
        return _joined(x, dim, lambda a, b: graph.map("mul", a, b))
    return _scanned(graph, x, dim, [1.0], lambda x, product: [graph.map("mul", product, x)])[0]


@register_rule(aten.logcumsumexp.default)
def logcumsumexp(graph: Graph, x: Value, dim: int) -> Value:
    if not _over_positions(graph, x, dim):
        return _joined(x, dim, lambda a, b: logaddexp(graph, a, b))
    return _scanned(graph, x, dim, [_LEAST], lambda x, total: [logaddexp(graph, total, x)])[0]


@register_rule(aten.cummax.default)
def cummax(graph: Graph, x: Value, dim: int) -> tuple[Value, Value | None]:
    return _extreme(graph, x, dim, "max", _LEAST)


@register_rule(aten.cummin.default)
def cummin(graph: Graph, x: Value, dim: int) -> tuple[Value, Value | None]:
    return _extreme(graph, x, dim, "min", -_LEAST)


def _extreme(graph: Graph, x: Value, dim: int, opcode: str, first: float) -> tuple[Value, Value | None]:
    """Returns the greatest or least so far, and over positions where it is: the last place, of equal ones."""
    if not _over_positions(graph, x, dim):
        return _joined(x, dim, lambda a, b: graph.map(opcode, a, b)), None
    places = Constant.literal(torch.arange(x.shape[dim], dtype=torch.float32)[:, None])

    def step(x: Value, extreme: Value, place: Value) -> list[Value]:
        new = graph.map("le", extreme, x) if opcode == "max" else graph.map("le", x, extreme)
        return [graph.map(opcode, extreme, x), graph.map("where", new, places, place)]

    extreme, place = _scanned(graph, x, dim, [first, 0.0], step)
    return extreme, place
