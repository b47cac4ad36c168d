"""Receptive fields: the elements of the event that an output depends on, from the pieces of the graph."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from fastgen.generate.compile.pipeline import Analysis
from fastgen.generate.ir.graph import Node, Piece
from fastgen.generate.ir.loops import loops_of
from fastgen.generate.ir.records import KeyRows
from fastgen.generate.orders import Order
from fastgen.generate.schedule.scheduler import DrawSite


@dataclass(frozen=True)
class ReceptiveField:
    """The elements that the distribution of one element depends on, whatever the weights that are not zero.

    ``seen``, ``blind`` and ``earlier`` are booleans ``[C, *grid]``. ``earlier`` are the elements that come before it in
    the order. ``blind`` are those of them inside the bounding box of ``seen`` and the position (for sequences and other
    orders than raster: since the first one seen) that it does not depend on.
    """

    position: tuple[int, ...]
    channel: int
    seen: np.ndarray
    blind: np.ndarray
    earlier: np.ndarray
    needed: dict[Node, np.ndarray] = field(repr=False)
    """Per node, ``[runs, rows]``: the cells on the way."""

    @property
    def extents(self) -> dict[str, int]:
        """How far it reaches: rows "above", columns "left" and "right", of a video also "frames" back and rows "below";
        or "steps" back.

        Of features it is the number "seen".
        """
        at = np.argwhere(self.seen.any(0))
        if not len(at):
            return {}
        low, high = at.min(0), at.max(0)
        if len(self.position) == 1:
            return {"steps": max(0, self.position[0] - int(low[0]))}
        before = [max(0, at - int(end)) for at, end in zip(self.position, low, strict=True)]
        after = [max(0, int(end) - at) for at, end in zip(self.position, high, strict=True)]
        image = {"above": before[-2], "left": before[-1], "right": after[-1]}
        return image if len(self.position) == 2 else {"frames": before[0], **image, "below": after[-2]}


def receptive_field(
    analysis: Analysis, shift: int = 0, position: tuple[int, ...] | None = None, channel: int = 0
) -> ReceptiveField:
    """Returns the receptive field of the output that scores ``channel`` of ``position``.

    ``shift``: the input at position t is the element at t - shift (1 for ``predicts="next"``).

    By default the position is the middle of the last row of an image or a video, the last step of a sequence, or the
    last in the order.

    Raises:
        ValueError: the position or the channel is outside the event.
    """
    order, channels, grid = analysis.order, analysis.order.channels, analysis.order.grid
    position = shown_position(order) if position is None else tuple(int(i) for i in position)
    if len(position) != len(grid) or not all(0 <= i < n for i, n in zip(position, grid, strict=True)):
        raise ValueError(f"position must lie in the grid {grid}, got {position}")
    if not 0 <= channel < channels:
        raise ValueError(f"channel must be 0 .. {channels - 1}, got {channel}")
    flat = int(np.ravel_multi_index(position, grid))
    draw, row = _site(analysis.draws, flat, channel)
    seen, needed = _walk(analysis, shift, draw, row)
    earlier = order.steps < order.steps[channel, flat]
    blind = blind_elements(seen, order, channel, flat)
    shape = (channels, *grid)
    return ReceptiveField(position, channel, seen.reshape(shape), blind.reshape(shape), earlier.reshape(shape), needed)


def shown_position(order: Order) -> tuple[int, ...]:
    """Returns the position whose output is shown where none is named; see ``receptive_field``."""
    grid = order.grid
    if len(grid) > 1 and order.regular:
        return (*(n - 1 for n in grid[:-1]), grid[-1] // 2)
    return order.coordinates(int(order.steps[order.channels - 1].argmax()))


def blind_elements(seen: np.ndarray, order: Order, channel: int, position: int) -> np.ndarray:
    """Returns the earlier elements ``[C, P]`` that an output misses within its reach; see ``ReceptiveField.blind``.

    Args:
        seen: booleans ``[C, P]``, the elements that the output which scores ``channel`` of ``position`` depends on.
        order: the event's.
        channel, position: of the scored element; the position in natural order.
    """
    step = order.steps[channel, position]
    seen = seen & (order.steps < step)
    hull = (
        _hull(seen, position, order.grid) if len(order.grid) > 1 else order.steps >= order.steps[seen].min(initial=step)
    )
    return (order.steps < step) & hull & ~seen


def _site(draws: list[DrawSite], position: int, channel: int) -> tuple[DrawSite, int]:
    for draw in draws:
        if draw.channel0 <= channel < draw.channel0 + draw.channels:
            rows = np.flatnonzero(draw.positions == position)
            if len(rows):
                return draw, int(rows[0])
    raise AssertionError("every element is drawn")


def _walk(analysis: Analysis, shift: int, draw: DrawSite, row: int) -> tuple[np.ndarray, dict[Node, np.ndarray]]:
    """Follows every dependency of one draw back to the event; returns seen elements ``[C, P]`` and cells between."""
    graph, event = analysis.traced.graph, analysis.traced.input
    needed = {node: np.zeros((len(node.runs), node.rows), bool) for node in graph.nodes if node.kind == "computed"}
    read = np.zeros((event.rows, event.channels), bool)

    def mark(piece: Piece, rows: np.ndarray) -> None:
        rows = rows[piece.rows[rows] >= 0]
        if piece.node is event:
            slots = piece.slots[rows, None] + piece.stride * np.arange(piece.length)
            read[piece.rows[rows, None], slots] = True
        elif piece.node.kind == "computed":
            table = needed[piece.node]
            if len(table) > 1 and piece.varies:
                slots = piece.slots[rows, None] + piece.stride * np.arange(piece.length)
                table[piece.node.run_of_slot[slots], piece.rows[rows, None]] = True
            elif len(rows):
                for number in piece.source_numbers():
                    table[number, piece.rows[rows]] = True

    def mark_keys(keys: KeyRows, rows: np.ndarray) -> None:
        if keys.node is event:
            read[rows] = True
        elif keys.node.kind == "computed":
            needed[keys.node][:, rows] = True

    def mark_sources(node: Node) -> None:
        for run, rows in zip(node.runs, needed[node], strict=True):
            if rows.any():
                for piece in run.pieces():
                    mark(piece, np.flatnonzero(rows))
                for keys in run.key_rows():
                    mark_keys(keys, keys.read_by(rows, run.attention.seen))

    for piece in draw.pieces:
        mark(piece, np.array([row]))
    for members in reversed(loops_of(graph)):
        inside, before = [node for node in reversed(members) if node in needed], -1
        while before != (now := sum(int(needed[node].sum()) for node in inside)):
            before = now
            for node in inside:
                mark_sources(node)
    channels, grid = analysis.order.channels, analysis.order.grid
    if analysis.order.name == "features":
        seen = read[:1]
    else:
        seen = read[: math.prod(grid)].T.copy()
        seen = np.concatenate([seen[:, shift:], np.zeros((channels, shift), bool)], 1)
    return seen, {node: table for node, table in needed.items() if table.any()}


def _hull(seen: np.ndarray, position: int, grid: tuple[int, ...]) -> np.ndarray:
    """``[1, P]``: the bounding box of what any channel sees, and the position."""
    inside = seen.any(0)
    inside[position] = True
    at = np.argwhere(inside.reshape(grid))
    box = np.zeros(grid, bool)
    box[tuple(slice(low, high + 1) for low, high in zip(at.min(0), at.max(0), strict=True))] = True
    return box.reshape(1, -1)
