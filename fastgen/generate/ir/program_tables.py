"""The tables of a program as columns of numbers, and the checks of whatever an instruction reads and writes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastgen.generate.ir.instructions import BODIES, FLOAT32, INT8, STATE
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

    @classmethod
    def of(cls, columns: dict[str, np.ndarray], name: str) -> Cells:
        return cls(*(columns[f"{name}.{end}"] for end in cls._fields))

    def inside(self, other: Cells) -> Cells:
        lower, upper = np.maximum, np.minimum
        return Cells(*(f(a, b) for f, a, b in zip((lower, upper, lower, upper), self, other, strict=True)))


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
        row, column = used["map.row_stride"].astype(float), used["map.column_stride"].astype(float)
        rows = np.stack([row * cells.row0, row * (cells.row1 - 1)])
        columns = np.stack([column * cells.column0, column * (cells.column1 - 1)])
        small = (np.abs(rows).max(0) <= FARTHER) & (np.abs(columns).max(0) <= FARTHER)
        seen = (cells.row0 < cells.row1) & (cells.column0 < cells.column1)
        self.require(table, ~seen | small, "a position is too large", record)
        first = rows.min(0) + columns.min(0) + used["map.offset"]
        self.require(table, ~seen | (first >= 0), "it addresses a position before the first", record)

    def check_domains(self, table: str, timed: np.ndarray) -> np.ndarray:
        """Checks the domains of one kind of instruction; returns how many of its cells answer to one step at most."""
        rows = getattr(self, table)
        cells, column = Cells.of(rows, "domain"), rows["domain.column_stride"]
        self.between(table, "domain.row0 domain.row1 domain.column0 domain.column1 domain.delay", -FAR, FAR)
        forwards = (cells.row0 <= cells.row1) & (cells.column0 <= cells.column1)
        self.require(table, forwards, "its domain runs backwards")
        height, width = cells.row1 - cells.row0, cells.column1 - cells.column0
        self.between(table, "domain.row_stride", np.where(height > 1, 1, 0), 1 << 20)
        self.between(table, "domain.column_stride", np.where(width > 1, 1, 0), 1 << 20)
        row = rows["domain.row_stride"].astype(float) * self.program.row_length
        longest = row * np.maximum(1, np.maximum(np.abs(cells.row0), np.abs(cells.row1)))
        longest = np.maximum(longest, column.astype(float) * np.maximum(np.abs(cells.column0), np.abs(cells.column1)))
        self.require(table, ~timed | (longest <= 2.0**60), "its steps are out of range")
        along = column * np.maximum(width - 1, 0) // np.maximum(row, 1) + 1
        return np.where(width > 0, np.minimum(height, along), 0)
