"""Iteration domains while they are scheduled: cells of a run that are computed alike, listed one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fastgen.generate.ir.instructions import AccessMap, Box

INFINITE = np.int64(1 << 60)
"""The deadline of what nobody reads."""


class Cells(NamedTuple):
    """The rows and the columns of some cells, an array of each."""

    row: np.ndarray
    column: np.ndarray

    def chosen(self, which) -> Cells:
        """Returns the cells that a mask or an index picks."""
        return Cells(self.row[which], self.column[which])

    def box(self) -> Box:
        """Returns the least box that holds all cells."""
        row, column = self
        return Box(int(row.min()), int(row.max()) + 1, int(column.min()), int(column.max()) + 1)


@dataclass
class Access:
    """A cell in ``box`` reads or writes a node at the position that ``map`` gives, channels from ``slot`` on."""

    map: AccessMap
    slot: int
    box: Box


@dataclass(eq=False)
class ScheduledDomain:
    """The cells of one run that are computed alike, with one affine schedule and one access for every piece they read.

    ``row_step`` and ``column_step`` are steps a row and a column, ``delay`` is in steps; for ROW ``row_step`` and
    ``delay`` are rows of steps. ``phases`` is when each cell is computed, as ``Scheduler`` counts time.
    """

    when: int
    row_step: int
    column_step: int
    delay: int
    cells: Cells
    positions: np.ndarray
    phases: np.ndarray
    target: AccessMap
    operands: list[Access | None] = field(default_factory=list)

    @property
    def key(self) -> tuple:
        """Equal for two domains whose cells run at the same steps."""
        return self.when, self.row_step, self.column_step, self.delay, self.box

    @cached_property
    def box(self) -> Box:
        return self.cells.box()

    def first_steps(self) -> np.ndarray:
        """Returns for each cell the step of the first cell of its row."""
        return self.row_step * self.cells.row + self.column_step * self.cells.column.min() + self.delay
