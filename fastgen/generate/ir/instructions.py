"""The records of a step program; ``fastgen.generate.ir.program`` explains what they mean together.

Records may hold records. ``columns_of`` lists their numbers in order: so a table's rows are laid out in files, and so
the structs of ``csrc/program/program.h`` lie in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from operator import attrgetter
from typing import get_type_hints

import numpy as np

PROLOGUE, ROW, PIXEL = 0, 1, 2
STATE, CONSTANT, CONTEXT = 0, 1, 2
DENSE, INDEX = 0, 1
UNBOUNDED = 1 << 40
FLOAT32, BFLOAT16, INT8 = 0, 1, 2
FORMATS = ("float32", "bfloat16", "int8")
"""The formats of buffers, by name."""


# ---- where and when


@dataclass
class IterationDomain:
    """The cells (frame, row, column) in a box, and their schedule; all but videos have one frame, 0.

    The box: ``frame0 <= frame < frame1``, ``row0 <= row < row1`` and ``column0 <= column < column1``. The schedule is
    affine: ``frame_stride`` rows of steps a frame, ``row_stride`` rows of steps a row, ``column_stride`` steps a
    column, ``delay`` steps (rows of steps for instructions that run at the starts of rows).
    """

    row_stride: int
    column_stride: int
    delay: int
    row0: int
    row1: int
    column0: int
    column1: int
    frame_stride: int = 0
    frame0: int = 0
    frame1: int = 1

    @property
    def frames(self) -> int:
        return self.frame1 - self.frame0

    @property
    def rows(self) -> int:
        return self.row1 - self.row0

    @property
    def columns(self) -> int:
        return self.column1 - self.column0


@dataclass
class AccessMap:
    """For a cell the position ``frame_stride * frame + row_stride * row + column_stride * column + offset``."""

    row_stride: int
    column_stride: int
    offset: int
    frame_stride: int = 0

    def position(self, row, column, frame=0):
        """Returns the position of a cell; of many cells where its coordinates are arrays or tensors."""
        return self.row_stride * row + self.column_stride * column + self.frame_stride * frame + self.offset


@dataclass
class Box:
    """The cells with ``frame0 <= frame < frame1``, ``row0 <= row < row1`` and ``column0 <= column < column1``."""

    row0: int = 0
    row1: int = UNBOUNDED
    column0: int = 0
    column1: int = UNBOUNDED
    frame0: int = 0
    frame1: int = UNBOUNDED

    def holds(self, row, column, frame=0):
        """Whether a cell is inside; of many cells where its coordinates are arrays or tensors."""
        inside = (row >= self.row0) & (row < self.row1) & (column >= self.column0) & (column < self.column1)
        return inside & (frame >= self.frame0) & (frame < self.frame1)


# ---- memory


@dataclass
class Buffer:
    """``positions`` slots of ``channels`` values.

    ``offset``: in the sample's state, in ``constants``, or the context's number. A CONTEXT buffer has as many positions
    as the context tensor has; ``positions`` is then 0.

    ``format`` is FLOAT32, or BFLOAT16 or INT8 for a buffer of the state that Computes store and only Attends read, as
    keys or values. A position then takes whole numbers of the state: a BFLOAT16 one two channels a number; an INT8 one
    four channels a number, then one float32 scale for every ``group`` channels, which are scale * integer in
    -127 .. 127. ``group`` is 0 in other formats.
    """

    where: int
    channels: int
    positions: int
    offset: int
    format: int = FLOAT32
    group: int = 0

    @property
    def stride(self) -> int:
        """Numbers from one position to the next."""
        if self.format == FLOAT32:
            return self.channels
        return (
            -(-self.channels // 2) if self.format == BFLOAT16 else -(-self.channels // 4) + self.channels // self.group
        )


@dataclass
class Operand:
    """``length`` channels of a buffer, ``channel + i * channel_stride``, at the position that ``map`` gives a cell.

    A cell outside ``box`` reads the values from ``border`` on in ``constants``, or zeros where that is -1.
    """

    buffer: int
    channel: int
    channel_stride: int
    length: int
    map: AccessMap
    box: Box
    border: int = -1


@dataclass
class Segment:
    """A run of the inputs of a gather-multiply; ``row`` is its first row in the weight matrix."""

    operand: int
    kind: int
    row: int
    length: int


@dataclass
class Weight:
    """A row-major ``[rows, columns]`` matrix at ``offset`` in ``weights``."""

    offset: int
    rows: int
    columns: int


@dataclass
class Operation:
    """One operation of a lane program; ``opcodes.OPCODES`` says which fields it reads."""

    opcode: int
    dst: int
    a: int = 0
    b: int = 0
    c: int = 0
    x: float = 0.0
    y: float = 0.0


# ---- attention


@dataclass
class KeySet:
    """The keys that a query sees: those of the runs ``run0 .. run1``, one after the other."""

    run0: int
    run1: int


@dataclass
class KeyRun:
    """The keys ``first, first + step, ...`` below ``stop``, at a cell.

    ``first`` is what ``start`` gives the cell, ``low`` at least; ``stop`` what ``end`` gives it, ``high`` at most, and
    at most the number of positions of a context whose keys or values are seen.
    """

    start: AccessMap
    low: int
    end: AccessMap
    high: int
    step: int

    def bounds(self, row, column, frame=0) -> tuple[np.ndarray, np.ndarray]:
        """Returns ``first`` and ``stop`` at cells, given by arrays of their coordinates."""
        first, stop = self.start.position(row, column, frame), self.end.position(row, column, frame)
        return np.maximum(self.low, first), np.minimum(self.high, stop)


@dataclass
class ScoreOperand:
    """One number for every query, key and head.

    It is the channel ``offset + row_stride * row + column_stride * column + key_stride * key + head_stride * head`` of
    the operand's buffer, at the position that the operand's access map gives the cell. Attention has cells in frame 0.
    """

    operand: int
    offset: int
    row_stride: int
    column_stride: int
    key_stride: int
    head_stride: int


# ---- instructions


@dataclass
class Compute:
    """Multiplies gathered inputs by a matrix, then applies a lane program to the sums."""

    segment0: int
    segment1: int
    weight: int
    bias: int
    accumulator: int
    parts: int
    lanes: int
    operation0: int
    operation1: int
    registers: int
    block: int = 1
    """How many cells may run at once."""


@dataclass
class Draw:
    """Draws ``channels`` elements of the event, from ``channel0`` on, at the natural position that ``map`` gives.

    The parameters are the concatenated values of operands ``parameter0 .. parameter1``: ``channels`` groups of equal
    size for a head that draws channels independently, one group for a head that couples them. ``input0 .. input1`` are
    the operands that receive the input value of channel ``channel0``, ``channel0 + 1``, ... (one operand of length 1
    each).
    """

    parameter0: int
    parameter1: int
    map: AccessMap
    channel0: int
    channels: int
    input0: int
    input1: int


@dataclass
class Attend:
    """Weighs values by how well their keys fit a query, for every head.

    ``query`` is an operand of ``heads`` times as many channels as a head's query has, ``out`` of ``heads`` times as
    many as its value has; ``key`` and ``value`` are operands of ``groups`` of such channels at the cell (0, key), and
    head h reads group ``h * groups // heads``. The cell's key set has the number that ``keys`` gives it.
    ``operation0 .. operation1`` is a lane program over the keys that makes scores of the products in register 0,
    ``weighting0 .. weighting1`` one that alters the weights there; their loads name score operands. ``softmax`` is 1
    where the weights are the softmax of the scores, 0 where they are the scores. ``least`` is the place in
    ``constants`` of the number that the greatest score must reach, where any key is seen; or -1.
    """

    query: int
    key: int
    value: int
    out: int
    heads: int
    groups: int
    keys: AccessMap
    operation0: int
    operation1: int
    weighting0: int
    weighting1: int
    registers: int
    softmax: int
    least: int = -1


BODIES: dict[str, type] = {"computes": Compute, "draws": Draw, "attends": Attend}
"""The table of every kind of body: an instruction's ``kind`` in files is the place of its body's type here.

A new kind of instruction is a record here and in ``Body`` of csrc/program/program.h, checked there and in
``program_checks.py``, and run by the machines; headers and the other kinds stay as they are.
"""


@dataclass
class Instruction:
    """A header, which all kinds share, and a body, whose type is the kind.

    ``when`` is PROLOGUE, ROW or PIXEL, ``level`` the depth in the dependencies of that phase, ``loop`` the number of a
    loop that it belongs to, or 0.
    """

    when: int
    level: int
    loop: int
    domain: IterationDomain
    body: Compute | Draw | Attend


@dataclass
class Header:
    """An instruction as a row of a table; its body is the next row of the table of its kind."""

    kind: int
    when: int
    level: int
    loop: int
    domain: IterationDomain


# ---- records as rows of numbers


@cache
def columns_of(record: type) -> tuple[str, ...]:
    """Returns the names of a record's integers in order; those of a record in it with that one's name: "box.row0"."""
    names = []
    for field, kind in zip(fields(record), _kinds(record), strict=True):
        if is_dataclass(kind):
            names += [f"{field.name}.{name}" for name in columns_of(kind)]
        elif kind is int:
            names.append(field.name)
    return tuple(names)


def to_rows(records: list, record: type) -> list[tuple[int, ...]]:
    """Returns the integers of records of one type, in the order of ``columns_of``."""
    return list(map(attrgetter(*columns_of(record)), records))


def from_rows(rows: list[list], record: type) -> list:
    """Returns the records of ``to_rows``; floats, which are a record's last fields, stand behind its integers."""
    return [_built(record, iter(row)) for row in rows]


def _built(record: type, numbers: Iterator):
    return record(*[next(numbers) if part is None else _built(part, numbers) for part in _parts(record)])


@cache
def _parts(record: type) -> tuple[type | None, ...]:
    """Returns for each field the record that it holds, or None for a number."""
    return tuple(kind if is_dataclass(kind) else None for kind in _kinds(record))


@cache
def _kinds(record: type) -> tuple[type, ...]:
    """Returns the types of a record's fields."""
    hints = get_type_hints(record)
    return tuple(hints[field.name] for field in fields(record))
