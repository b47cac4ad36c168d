"""Where the copies that a loop over an image's rows, columns or diagonals made of a node lie in the image.

A loop ``for column in range(W)`` over all rows at once makes W copies of H rows: the image, turned. One over the
columns of a skewed image, whose row r is moved to the right by r, makes W + H - 1 copies of H rows: cell (r, column)
is that of column ``column - r``, and what lies beside the image is padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastgen.generate.ir.graph import Node


@dataclass(frozen=True)
class Places:
    """The cells ``[copies, rows]`` of a loop in a grid ``shape``: ``index[k, i]`` is a place, or -1 beside it."""

    shape: tuple[int, int]
    index: np.ndarray


def places_of(used: np.ndarray, ready: np.ndarray) -> Places:
    """Returns a grid for the cells of a loop: as they are, turned, or the smaller one of a skewed image.

    Of grids of one size it is the one in whose order the cells are ready, or go back the fewest steps.

    Args:
        used: bool ``[copies, rows]``: the cells that depend on the input, and that the output depends on.
        ready: int ``[copies, rows]``: the steps at which they are ready.
    """
    copies, rows = used.shape
    k, i = np.meshgrid(np.arange(copies), np.arange(rows), indexing="ij")
    found = [Places((copies, rows), k * rows + i), Places((rows, copies), i * copies + k)]
    if used.any():
        found += [_sheared(i, column, used) for column in (k - i, k + i)]

    def cost(places: Places) -> tuple[int, int]:
        in_order = ready[used][np.argsort(places.index[used])]
        return places.shape[0] * places.shape[1], int(np.maximum(in_order[:-1] - in_order[1:], 0).sum())

    return min(found, key=cost)


def _sheared(row: np.ndarray, column: np.ndarray, used: np.ndarray) -> Places:
    """Returns the places in the bounding box of the used cells."""
    row0, column0 = row[used].min(), column[used].min()
    height, width = row[used].max() - row0 + 1, column[used].max() - column0 + 1
    inside = (row >= row0) & (row < row0 + height) & (column >= column0) & (column < column0 + width)
    return Places((int(height), int(width)), np.where(inside, (row - row0) * width + column - column0, -1))


def loop_places(members: Sequence[Node], needed: Mapping[Node, np.ndarray]) -> Places:
    """Returns the places of the cells of a node's copies, the rows of the first sample."""
    half = members[0].rows // 2
    used = np.stack([(node.uses > 0)[:half] & needed[node][:half] for node in members])
    return places_of(used, np.stack([np.max([run.ready[:half] for run in node.runs], 0) for node in members]))
