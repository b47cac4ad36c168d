"""The tables of a program as columns of numbers, and the checks of whatever an instruction reads and writes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastgen.generate.ir.instructions import BODIES, FLOAT32, INT8, PIXEL, PROLOGUE, ROW, STATE
from fastgen.generate.ir.program import Program

FAR = 1 << 41
"""Every field but coefficients is below it in size; UNBOUNDED is."""
FARTHER = 1 << 52
"""Every term of a position is below it in size, so that float64 holds their sums exactly."""
_FLOOR, _RATIO = 1 << 21, 32
"""Numbers that a program may hold in memory at once: so many, and so many times as its weights and constants are."""


class Cells(NamedTuple):
    """Boxes of cells, one a record."""

    row0: np.ndarray
    row1: np.ndarray
    column0: np.ndarray
    column1: np.ndarray
    frame0: np.ndarray
    frame1: np.ndarray

    @property
    def empty(self) -> np.ndarray:
        return (self.row0 >= self.row1) | (self.column0 >= self.column1) | (self.frame0 >= self.frame1)

    @property
    def sizes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, columns and frames."""
        return self.row1 - self.row0, self.column1 - self.column0, self.frame1 - self.frame0

    @classmethod
    def of(cls, columns: dict[str, np.ndarray], name: str) -> Cells:
        return cls(*(columns[f"{name}.{end}"] for end in cls._fields))

    def inside(self, other: Cells) -> Cells:
        lower, upper = np.maximum, np.minimum
        return Cells(*(f(a, b) for f, a, b in zip((lower, upper) * 3, self, other, strict=True)))


class Tables:
    """The columns of a program's tables by name (``tables.computes["lanes"]``), and checks that name a record."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.values = len(program.weights) + len(program.constants)
        for name, columns in program.columns().items():
            setattr(self, name, columns)

    def require(self, table: str, holds: np.ndarray, words: str, records: np.ndarray | None = None) -> None:
        """Raises ValueError naming the first record where ``holds`` is False; ``records`` gives their numbers.

        A body is named as the instruction that it belongs to.
        """
        if not holds.all():
            at = int(np.argmin(holds))
            at = at if records is None else int(records[at])
            if table in BODIES:
                table, at = "instructions", int(getattr(self, table)["number"][at])
            raise ValueError(f"{table}[{at}]: {words}")

    def between(self, table: str, fields: str, low, high) -> None:
        """``low <= field < high``; the bounds are numbers, or arrays of one a record."""
        for field in fields.split():
            values = getattr(self, table)[field]
            self.require(table, (values >= low) & (values < high), f"{field.rpartition('.')[2]} is out of range")

    def in_proportion(self, what: str, size: float, extra: int = 0) -> None:
        if size > _FLOOR + extra + _RATIO * self.values:
            raise ValueError(f"{what} must be in proportion to the {self.values} weights and constants, got {size:.0f}")

    def members(self, table: str, field: str, other: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ranges ``field0 .. field1`` of a table's records, which must not overlap: (record, member)."""
        first, last = getattr(self, table)[field + "0"], getattr(self, table)[field + "1"]
        size = len(next(iter(getattr(self, other).values())))
        self.require(table, (first >= 0) & (first <= last) & (last <= size), f"{field} range is outside its table")
        counts = last - first
        if counts.sum() > size:
            raise ValueError(f"{table} must have {field} ranges that do not overlap")
        record = np.repeat(np.arange(len(first)), counts)
        return record, np.arange(len(record)) - np.repeat(np.cumsum(counts) - counts - first, counts)

    def check_uses(
        self, table: str, record: np.ndarray, operand: np.ndarray, written: bool, rounded: bool = False
    ) -> None:
        """Checks that ``operand[i]``, used by ``record[i]`` of a table, lies in its buffer at every cell.

        The buffer must be float32 unless ``rounded``: where Computes store, and Attends read keys or values.
        """
        size = len(self.program.operands)
        self.require(table, (operand >= 0) & (operand < size), "an operand is out of range", record)
        used = {field: values[operand] for field, values in self.operands.items()}
        float32 = self.buffers["format"][used["buffer"]] == FLOAT32
        self.require(table, rounded | float32, "an operand must lie in a float32 buffer", record)
        cells = Cells.of({field: values[record] for field, values in getattr(self, table).items()}, "domain")
        self.check_positions(table, record, used, cells.inside(Cells.of(used, "box")))
        if written:
            where = self.buffers["where"][used["buffer"]]
            self.require(table, where == STATE, "it writes outside the state", record)
            apart = (used["channel_stride"] > 0) | (used["length"] == 1)
            self.require(table, apart, "it writes with channel_stride 0", record)

    def check_rounded(self, table: str, record: np.ndarray, operand: np.ndarray) -> None:
        """Checks that operands of keys or values begin at a number of the state, and hold whole groups of channels."""
        used = {field: values[operand] for field, values in self.operands.items()}
        form, group = (self.buffers[field][used["buffer"]] for field in ("format", "group"))
        channel, group = used["channel"], np.where(form == INT8, group, 1)
        whole = (channel % np.where(form == INT8, 4, 2) == 0) & (channel % group == 0) & (used["length"] % group == 0)
        whole &= (used["channel_stride"] == 1) | (used["length"] == 1)
        self.require(table, (form == FLOAT32) | whole, "an operand has parts of groups of rounded channels", record)

    def check_positions(self, table: str, record: np.ndarray, used: dict[str, np.ndarray], cells: Cells) -> None:
        """Checks that the access map gives 0 or more at every cell, by terms that float64 holds exactly."""
        strides = (used[f"map.{axis}_stride"].astype(float) for axis in ("row", "column", "frame"))
        ends = (cells[:2], cells[2:4], cells[4:])
        terms = [np.stack([s * low, s * (high - 1)]) for s, (low, high) in zip(strides, ends, strict=True)]
        small = np.all([np.abs(term).max(0) <= FARTHER for term in terms], 0)
        self.require(table, cells.empty | small, "a position is too large", record)
        first = np.sum([term.min(0) for term in terms], 0) + used["map.offset"]
        self.require(table, cells.empty | (first >= 0), "it addresses a position before the first", record)

    def check_maps(self, table: str, name: str) -> None:
        """Checks the sizes of the numbers of access maps."""
        self.between(table, f"{name}.row_stride {name}.column_stride", -(1 << 21), 1 << 21)
        self.between(table, f"{name}.frame_stride", -(1 << 31), 1 << 31)
        self.between(table, f"{name}.offset", -FAR, FAR)

    def check_domains(self, table: str) -> np.ndarray:
        """Checks the domains of one kind of instruction; returns how many of its cells run together, at most.

        These are all cells of a PROLOGUE instruction, those of one start of a row of a ROW one, those of one step.
        """
        rows = getattr(self, table)
        cells, when = Cells.of(rows, "domain"), rows["when"]
        self.between(table, " ".join(f"domain.{end}" for end in (*Cells._fields, "delay")), -FAR, FAR)
        height, width, frames = cells.sizes
        self.require(table, (height >= 0) & (width >= 0) & (frames >= 0), "its domain runs backwards")
        self.between(table, "domain.row_stride", np.where((height > 1) & (when == PIXEL), 1, 0), 1 << 20)
        self.between(table, "domain.column_stride", np.where(width > 1, 1, 0), 1 << 20)
        self.between(table, "domain.frame_stride", np.where(frames > 1, 1, 0), 1 << 20)
        row, column, frame = (rows[f"domain.{axis}_stride"].astype(float) for axis in ("row", "column", "frame"))
        length = float(self.program.row_length)
        longest = column * np.maximum(np.abs(cells.column0), np.abs(cells.column1))
        for step, low, high in (row, cells.row0, cells.row1), (frame, cells.frame0, cells.frame1):
            longest = np.maximum(longest, step * length * np.maximum(1, np.maximum(np.abs(low), np.abs(high))))
        self.require(table, (when != PIXEL) | (longest <= 2.0**60), "its steps are out of range")
        along, below = column * np.maximum(width - 1, 0), row * np.maximum(height - 1, 0)
        at_step = np.minimum(height, along // np.maximum(row * length, 1) + 1)
        at_step = at_step * np.minimum(frames, (below * length + along) // np.maximum(frame * length, 1) + 1)
        at_start = np.where(row > 0, np.minimum(frames, below // np.maximum(frame, 1) + 1), height) * width
        every = height.astype(float) * width * frames
        together = np.where(when == PROLOGUE, every, np.where(when == ROW, at_start, at_step))
        return np.where(cells.empty, 0, together)
