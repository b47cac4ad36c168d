"""Affine functions of the coordinates of a cell that go through given values, or between given bounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastgen.generate.ir.instructions import AccessMap
from fastgen.generate.schedule.iteration_domain import INFINITE, Cells, Schedule


def affine(cells: Cells, values: np.ndarray) -> AccessMap | None:
    """Returns the map that gives every cell its value, or None."""
    row, column, frame = (axis - axis[0] for axis in cells)
    rest, strides = values - values[0], []
    for axis, others in (column, (row, frame)), (row, (frame,)), (frame, ()):
        stride = 0
        other = axis != 0
        for fixed in others:
            other = other & (fixed == 0)
        if other.any():
            i = int(np.argmax(other))
            stride, left = divmod(int(rest[i]), int(axis[i]))
            if left:
                return None
        rest = rest - stride * axis
        strides.append(stride)
    if rest.any():
        return None
    column_stride, row_stride, frame_stride = strides
    first = row_stride * int(cells.row[0]) + column_stride * int(cells.column[0]) + frame_stride * int(cells.frame[0])
    return AccessMap(row_stride, column_stride, int(values[0]) - first, frame_stride)


def slopes(cells: Cells, values: np.ndarray) -> tuple[int, int, int]:
    """Returns the likely advance of ``values`` a row, a column and a frame: the commonest differences of neighbours."""
    row, column, frame = cells
    return (
        _slope(values, row, (column, frame)), _slope(values, column, (row, frame)), _slope(values, frame, (row, column))
    )  # fmt: skip


def _slope(values: np.ndarray, axis: np.ndarray, others: Sequence[np.ndarray]) -> int:
    order = np.lexsort((axis, *others))
    axis, values = axis[order], values[order]
    neighbours = axis[1:] == axis[:-1] + 1
    for other in others:
        neighbours &= other[order][1:] == other[order][:-1]
    differences = (values[1:] - values[:-1])[neighbours]
    differences = differences[np.abs(differences) < INFINITE // 4]
    if not len(differences):
        return 0
    unique, counts = np.unique(differences, return_counts=True)
    return int(unique[counts.argmax()])


def regular_times(cells: Cells, ready, deadline, likely: tuple[int, int, int]) -> Schedule | None:
    """Finds the latest schedule of ``ready`` and ``deadline``, or None.

    ``likely`` is the advance a row, a column and a frame that the sizes of the grids suggest; others come from the
    times themselves.
    """
    if (ready > deadline).any():
        return None
    for row_step, column_step, frame_step in likely, slopes(cells, deadline), slopes(cells, ready):
        if min(row_step, column_step, frame_step) < 0:
            continue
        base = Schedule(row_step, column_step, 0, frame_step).time(cells)
        low, high = int((ready - base).max()), int((deadline - base).min())
        if low <= high:
            return Schedule(row_step, column_step, high, frame_step)
    return None
