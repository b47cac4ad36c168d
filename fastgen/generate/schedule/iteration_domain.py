"""Iteration domains while they are scheduled: cells of a run that are computed alike, listed one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fastgen.generate.ir.instructions import PROLOGUE, ROW, AccessMap, Box

INFINITE = np.int64(1 << 60)
"""The deadline of what nobody reads."""


class Cells(NamedTuple):
    """The rows, the columns and the frames of some cells, an array of each."""

    row: np.ndarray
    column: np.ndarray
    frame: np.ndarray

    @classmethod
    def of_frame(cls, row: np.ndarray, column: np.ndarray) -> Cells:
        """Returns cells of frame 0."""
        return cls(row, column, np.zeros_like(row))

    @classmethod
    def on_grid(cls, positions: np.ndarray, height: int, width: int) -> Cells:
        """Returns the cells of positions that follow one another by columns, rows of ``width``, frames of ``height``
        rows.
        """
        row = positions // width
        return cls(row % height, positions % width, row // height)

    def chosen(self, which) -> Cells:
        """Returns the cells that a mask or an index picks."""
        return Cells(self.row[which], self.column[which], self.frame[which])

    def box(self) -> Box:
        """Returns the least box that holds all cells."""
        return Box(*(end for axis in self for end in (int(axis.min()), int(axis.max()) + 1)))


class Schedule(NamedTuple):
    """When the cells of a domain are computed: in steps; in rows of steps for what is computed at the starts of rows.

    There ``column_step`` is 0; where ``row_step`` is 0, too, all rows of a frame are computed at once.
    """

    row_step: int
    column_step: int
    delay: int
    frame_step: int = 0

    def time(self, cells: Cells) -> np.ndarray:
        """Returns when each cell is computed."""
        row, column, frame = cells
        return self.row_step * row + self.column_step * column + self.frame_step * frame + self.delay

    def phases(self, when: int, cells: Cells, row_length: int) -> np.ndarray:
        """Returns the phase of each cell, as ``Scheduler`` counts them, of a domain of the phase ``when``."""
        if when == PROLOGUE:
            return np.full(len(cells.row), -1, np.int64)
        return 2 * self.time(cells) * row_length if when == ROW else 2 * self.time(cells) + 1


@dataclass
class Access:
    """A cell in ``box`` reads or writes a node at the position that ``map`` gives, channels from ``slot`` on."""

    map: AccessMap
    slot: int
    box: Box


@dataclass(eq=False)
class ScheduledDomain:
    """The cells of one run that are computed alike, with one affine schedule and one access for every piece they read.

    ``phases`` is when each cell is computed, as ``Scheduler`` counts time.
    """

    when: int
    schedule: Schedule
    cells: Cells
    positions: np.ndarray
    phases: np.ndarray
    target: AccessMap
    operands: list[Access | None] = field(default_factory=list)

    @property
    def key(self) -> tuple:
        """Equal for two domains whose cells run at the same steps."""
        return self.when, self.schedule, self.box

    @cached_property
    def box(self) -> Box:
        return self.cells.box()

    def first_steps(self) -> np.ndarray:
        """Returns for each cell the step of the first cell of its row."""
        return self.schedule.time(self.cells._replace(column=self.cells.column.min()))
