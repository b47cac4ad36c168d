"""Cells that read unlike things, cut into boxes of cells that read alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastgen.generate.schedule.iteration_domain import Cells

MOST_BOXES = 12
"""Of one run: the first row, the first column and corners, not a box for every position."""


def boxes_of(cells: Cells, kinds: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """Returns the cells (indices) of boxes within which every array of ``kinds`` is constant; None for too many.

    Each box is as wide as it can be, then as high, from the first cell on that lies in none.
    """
    kind = np.unique(np.stack(kinds, 1), axis=0, return_inverse=True)[1].reshape(-1)
    row, column = cells.row - cells.row.min(), cells.column - cells.column.min()
    at = np.full((row.max() + 1, column.max() + 1), -1)
    at[row, column] = np.arange(len(row))
    of = np.where(at >= 0, kind[at], -1)
    boxes = []
    for first in np.lexsort((column, row)):
        top, left = row[first], column[first]
        wanted = of[top, left]
        if wanted < 0:
            continue
        if len(boxes) == MOST_BOXES:
            return None
        other = of[top, left:] != wanted
        right = left + (int(other.argmax()) if other.any() else len(other))
        other = (of[top:, left:right] != wanted).any(1)
        bottom = top + (int(other.argmax()) if other.any() else len(other))
        boxes.append(at[top:bottom, left:right].reshape(-1))
        of[top:bottom, left:right] = -1
    return boxes
