"""The grids on which the positions of a node may lie: frames of rows of columns, and how their times may advance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fastgen.generate.ir.graph import ChannelRun, Node
from fastgen.generate.orders import Order
from fastgen.generate.schedule.iteration_domain import Cells
from fastgen.generate.schedule.placed import Placed


class Period(NamedTuple):
    """Every so manyth row, column and frame is computed alike."""

    row: int
    column: int
    frame: int = 1


_PERIODS_2D = [
    Period(*every)
    for every in (
        (1, 1), (2, 2), (1, 2), (2, 1), (4, 4), (3, 3), (1, 3), (1, 4), (2, 4), (4, 2), (8, 8), (6, 6), (2, 6)
    )
]  # fmt: skip
_PERIODS_1D = [Period(1, m) for m in (*range(1, 33), 40, 48, 64, 80, 96, 100, 128, 160, 200, 256, 320, 400, 441, 512)]
_PERIODS_3D = [Period(row, column, frame) for frame in (1, 2, 4, 3) for row, column, _ in _PERIODS_2D]


def sizes_of(node: Node, positions: int, placed: Mapping[Node, Placed], order: Order) -> tuple[int, int]:
    """Returns the height and the width of a frame of the node's positions; a sequence is one row."""
    shape, several = node.rows_shape, order.regular and order.length > order.row_length
    dims: Sequence[int] = shape[1:] if shape[0] == 2 or node.kind == "constant" else (1,)
    if order.has_frames and (len(shape) >= 4 or (len(shape) == 3 and shape[0] != 2)):  # frames may be in the batch
        height, width = shape[-2:]
        return (height, width) if positions % (height * width) == 0 else (1, max(positions, 1))
    if order.has_frames and dims == (order.grid[0],):
        return 1, 1
    dims = [n for n in dims if n > 1]
    if len(dims) >= 2:
        return positions // dims[-1], dims[-1]
    for run in node.runs:
        for piece in run.pieces():
            source = placed.get(piece.node)
            if source is not None and piece.node.kind != "constant" and source.positions == positions:
                return source.height, source.width
    if several and positions % order.row_width == 0:
        height = positions // order.row_width
        return (order.grid[1] if order.has_frames and height % order.grid[1] == 0 else height), order.row_width
    return 1, max(positions, 1)


def grids(placed: Placed, run: ChannelRun, has_rows: bool) -> Iterator[tuple[Cells, list[Period]]]:
    """Yields the cells of all positions, in the ways to lay them out that are worth a try, with periods to try."""
    p = np.arange(placed.positions)
    if placed.height * placed.width < placed.positions and run.attention is None:
        yield Cells.on_grid(p, placed.height, placed.width), _PERIODS_3D
    if placed.width < placed.positions:
        yield Cells.of_frame(p // placed.width, p % placed.width), _PERIODS_2D
    else:
        yield Cells.of_frame(p * 0, p), _PERIODS_1D
    if has_rows:
        yield Cells.of_frame(p * 0, p), _PERIODS_1D[:8]
    elif placed.width < placed.positions:  # many cells a step, a class of cells for each
        yield Cells.of_frame(p * 0, p), _PERIODS_1D
    order = np.argsort(run.ready[placed.row], kind="stable")
    rank = np.empty_like(p)
    rank[order] = p
    if not np.array_equal(rank, p):
        yield Cells.of_frame(p * 0, rank), _PERIODS_1D[:8]


def likely_advance(grid: Cells, every: Period, order: Order) -> tuple[int, int, int]:
    """Returns the steps a row, a column and a frame of a grid that covers the event evenly, of whose rows, columns and
    frames every so manyth is taken.
    """
    height, width, frames = (int(axis.max()) + 1 for axis in grid)
    if width == len(grid.column):
        return 0, max(1, round(order.length / width)) * every.column, 0
    rows, frame_step = math.prod(order.grid[:-1]), 0
    if frames > 1:
        rows //= order.grid[0]
        frame_step = max(1, round(order.grid[0] / frames)) * every.frame * rows * order.row_length
    row_step = max(1, round(rows / height)) * every.row * order.row_length
    return row_step, max(1, round(order.row_length / width)) * every.column, frame_step
