"""Affine functions of the row and the column of a cell that go through given values, or between given bounds."""

from __future__ import annotations

import numpy as np

from fastgen.generate.ir.instructions import AccessMap
from fastgen.generate.schedule.iteration_domain import INFINITE, Cells


def affine(cells: Cells, values: np.ndarray) -> AccessMap | None:
    """Returns the map that gives every cell its value, or None."""
    row, column = cells
    row_stride = column_stride = 0
    same_row = (row == row[0]) & (column != column[0])
    if same_row.any():
        i = int(np.argmax(same_row))
        column_stride, rest = divmod(int(values[i] - values[0]), int(column[i] - column[0]))
        if rest:
            return None
    other = row != row[0]
    if other.any():
        i = int(np.argmax(other))
        along = column_stride * int(column[i] - column[0])
        row_stride, rest = divmod(int(values[i] - values[0]) - along, int(row[i] - row[0]))
        if rest:
            return None
    found = AccessMap(
        row_stride, column_stride, int(values[0]) - row_stride * int(row[0]) - column_stride * int(column[0])
    )
    return found if bool((values == found.position(row, column)).all()) else None


def slopes(cells: Cells, values: np.ndarray) -> tuple[int, int]:
    """Returns the likely advance of ``values`` a row and a column: the commonest differences between neighbours."""
    order = np.lexsort((cells.column, cells.row))
    (row, column), v = cells.chosen(order), values[order]
    columns = _commonest(v[1:] - v[:-1], (row[1:] == row[:-1]) & (column[1:] == column[:-1] + 1))
    order = np.lexsort((cells.row, cells.column))
    (row, column), v = cells.chosen(order), values[order]
    rows = _commonest(v[1:] - v[:-1], (column[1:] == column[:-1]) & (row[1:] == row[:-1] + 1))
    return rows, columns


def _commonest(values: np.ndarray, where: np.ndarray) -> int:
    values = values[where & (np.abs(values) < INFINITE // 4)]
    if not len(values):
        return 0
    unique, counts = np.unique(values, return_counts=True)
    return int(unique[counts.argmax()])


def regular_times(cells: Cells, ready, deadline, likely: tuple[int, int]) -> tuple[int, int, int] | None:
    """Finds (row advance, column advance, delay) of the latest schedule of ``ready`` and ``deadline``, or None.

    ``likely`` is the advance that the sizes of the grids suggest; others come from the times themselves.
    """
    if (ready > deadline).any():
        return None
    for row_step, column_step in likely, slopes(cells, deadline), slopes(cells, ready):
        if row_step < 0 or column_step < 0:
            continue
        base = row_step * cells.row + column_step * cells.column
        low, high = int((ready - base).max()), int((deadline - base).min())
        if low <= high:
            return row_step, column_step, high
    return None
