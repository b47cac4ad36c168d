"""Checks of a program that comes from a file: what it addresses, how long it runs, how much memory it takes.

They serve both machines and come before any work. The C++ machine checks once more what its own memory depends on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastgen.generate.heads import Head
from fastgen.generate.ir.program import (
    CONTEXT,
    DENSE,
    INDEX,
    OPCODE,
    OPCODES,
    PIXEL,
    PROLOGUE,
    ROW,
    STATE,
    Program,
    register_arguments,
)
from fastgen.generate.orders import Order

_FAR = 1 << 41
"""Every field but coefficients is below it in size; UNBOUNDED is."""
_FARTHER = 1 << 52
"""Every term of a position is below it in size, so that float64 holds their sums exactly."""
_FLOOR, _RATIO = 1 << 21, 32
"""Numbers that a program may hold in memory at once: so many, and so many times as its weights and constants are."""


def check_program(program: Program, head: Head, order: Order, contexts: Sequence[int]) -> None:
    """Raises ValueError, naming the record, unless any machine can run the program.

    Every index lies in its table, every operand in its buffer at every cell of the lattices that use it, every row in
    its matrix, every register in its code, every draw in the event; no sum leaves 64 bits; no code runs more cells at
    once than it stores; and no memory is out of proportion to the weights and the event.

    Args:
        program: as ``Program.from_tensors`` returns it.
        head, order: those of its event.
        contexts: the number of channels of each context.
    """
    tables = _Tables(program)
    _check_header(program, order)
    _check_buffers(tables, order, contexts)
    _check_operands(tables)
    _check_codes(tables)
    _check_segments(tables)
    _check_operations(tables)
    _check_draws(tables, head, order)
    _check_packed(tables)


class _Tables:
    """The columns of a program's tables by name (``tables.codes["lanes"]``), and checks that name a record."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.values = len(program.weights) + len(program.constants)
        for name, columns in program.columns().items():
            setattr(self, name, columns)

    def require(self, table: str, holds: np.ndarray, words: str, records: np.ndarray | None = None) -> None:
        """Raises ValueError naming the first record where ``holds`` is False; ``records`` gives their numbers."""
        if not holds.all():
            at = int(np.argmin(holds))
            raise ValueError(f"{table}[{at if records is None else int(records[at])}]: {words}")

    def between(self, table: str, fields: str, low, high) -> None:
        """``low <= field < high``; the bounds are numbers, or arrays of one a record."""
        for field in fields.split():
            values = getattr(self, table)[field]
            self.require(table, (values >= low) & (values < high), f"{field} is out of range")

    def in_proportion(self, what: str, size: float, extra: int = 0) -> None:
        if size > _FLOOR + extra + _RATIO * self.values:
            raise ValueError(f"{what} must be in proportion to the {self.values} weights and constants, got {size:.0f}")

    def members(self, table: str, field: str, of: str) -> tuple[np.ndarray, np.ndarray]:
        """The ranges ``field0 .. field1`` of a table's records, which must not overlap: (record, member), flat."""
        first, last = getattr(self, table)[field + "0"], getattr(self, table)[field + "1"]
        size = len(next(iter(getattr(self, of).values())))
        self.require(table, (first >= 0) & (first <= last) & (last <= size), f"{field} range is outside its table")
        counts = last - first
        if counts.sum() > size:
            raise ValueError(f"{table} must have {field} ranges that do not overlap")
        record = np.repeat(np.arange(len(first)), counts)
        return record, np.arange(len(record)) - np.repeat(np.cumsum(counts) - counts - first, counts)

    def check_uses(self, table: str, record: np.ndarray, operand: np.ndarray, written: bool) -> None:
        """That ``operand[i]``, used by ``record[i]`` of a table, lies in its buffer at every cell."""
        size = len(self.program.operands)
        self.require(table, (operand >= 0) & (operand < size), "an operand is out of range", record)
        cells = {field: getattr(self, table)[field][record] for field in ("q0", "q1", "w0", "w1")}
        used = {field: values[operand] for field, values in self.operands.items()}
        q0, q1 = np.maximum(cells["q0"], used["box_q0"]), np.minimum(cells["q1"], used["box_q1"])
        w0, w1 = np.maximum(cells["w0"], used["box_w0"]), np.minimum(cells["w1"], used["box_w1"])
        seen = (q0 < q1) & (w0 < w1)
        self.check_positions(table, record[seen], *(v[seen] for v in (used["a"], q0, q1, used["b"], w0, w1, used["c"])))
        if written:
            where = self.buffers["where"][used["buffer"]]
            self.require(table, where == STATE, "it writes outside the state", record)
            apart = (used["channel_stride"] > 0) | (used["length"] == 1)
            self.require(table, apart, "it writes with channel_stride 0", record)

    def check_positions(self, table: str, record, a, q0, q1, b, w0, w1, c) -> None:
        """That ``a q + b w + c`` is 0 or more for ``q0 <= q < q1, w0 <= w < w1``, and its terms are no larger than what
        float64 holds."""
        rows = np.stack([a.astype(float) * q0, a.astype(float) * (q1 - 1)])
        columns = np.stack([b.astype(float) * w0, b.astype(float) * (w1 - 1)])
        small = (np.abs(rows).max(0) <= _FARTHER) & (np.abs(columns).max(0) <= _FARTHER)
        self.require(table, small, "a position is too large", record)
        self.require(table, rows.min(0) + columns.min(0) + c >= 0, "it addresses a position before the first", record)

    def check_lattices(self, table: str, timed: np.ndarray) -> np.ndarray:
        """Checks the cells of codes or draws and when they run; how many answer to one step, at most."""
        rows = getattr(self, table)
        q0, q1, w0, w1, column = (rows[field] for field in ("q0", "q1", "w0", "w1", "column_stride"))
        self.between(table, "q0 q1 w0 w1 delay", -_FAR, _FAR)
        self.require(table, (q0 <= q1) & (w0 <= w1), "its lattice runs backwards")
        self.between(table, "row_stride", np.where(q1 - q0 > 1, 1, 0), 1 << 20)
        self.between(table, "column_stride", np.where(w1 - w0 > 1, 1, 0), 1 << 20)
        row = rows["row_stride"].astype(float) * self.program.row_length
        longest = row * np.maximum(1, np.maximum(np.abs(q0), np.abs(q1)))
        longest = np.maximum(longest, column.astype(float) * np.maximum(np.abs(w0), np.abs(w1)))
        self.require(table, ~timed | (longest <= 2.0**60), "its steps are out of range")
        along = column * np.maximum(w1 - w0 - 1, 0) // np.maximum(row, 1) + 1
        return np.where(w1 > w0, np.minimum(q1 - q0, along), 0)


def _check_header(program: Program, order: Order) -> None:
    allowed = {"steps": (order.length, _FAR), "row_length": (1, _FAR), "state_size": (0, _FAR), "lookahead": (1, _FAR)}
    for name, (least, most) in allowed.items():
        if not least <= getattr(program, name) <= most:
            raise ValueError(f"{name} must be in {least} .. {most}, got {getattr(program, name)}")


def _check_buffers(tables: _Tables, order: Order, contexts: Sequence[int]) -> None:
    program = tables.program
    where, channels, positions, offset = (tables.buffers[f] for f in ("where", "channels", "positions", "offset"))
    tables.between("buffers", "where", STATE, CONTEXT + 1)
    tables.between("buffers", "channels", 1, 1 << 31)
    tables.between("buffers", "positions", np.where(where == CONTEXT, 0, 1), 1 << 31)
    tables.between("buffers", "offset", 0, np.where(where == CONTEXT, len(contexts), _FAR))
    sizes = np.asarray([program.state_size, len(program.constants), _FAR])[where]
    end = offset + positions.astype(float) * channels
    tables.require("buffers", (where == CONTEXT) | (end <= sizes), "it lies outside the state or the constants")
    given = np.asarray([*contexts, 0])[np.where(where == CONTEXT, offset, -1)]
    tables.require("buffers", (where != CONTEXT) | (given == channels), "the context has another number of channels")
    event = min(order.channels * order.positions << 12, 1 << 28)
    tables.in_proportion("state_size", program.state_size, (1 << 24) + event)
    offset, rows, columns = (tables.weight_table[f] for f in ("offset", "rows", "columns"))
    tables.between("weight_table", "offset rows", 0, _FAR)
    tables.between("weight_table", "columns", 1, _FAR)
    inside = offset + rows.astype(float) * columns <= len(program.weights)
    tables.require("weight_table", inside, "it lies outside the weights")


def _check_operands(tables: _Tables) -> None:
    channel, stride, length, border = (tables.operands[f] for f in ("channel", "channel_stride", "length", "border"))
    tables.between("operands", "buffer", 0, len(tables.program.buffers))
    channels = tables.buffers["channels"][tables.operands["buffer"]]
    tables.between("operands", "length", 1, 1 << 31)
    tables.between("operands", "channel", 0, channels)
    tables.between("operands", "channel_stride", 0, channels + 1)
    tables.require("operands", channel + (length - 1.0) * stride < channels, "its channels are outside its buffer")
    tables.between("operands", "a b", -(1 << 21), 1 << 21)
    tables.between("operands", "c box_q0 box_q1 box_w0 box_w1", -_FAR, _FAR)
    tables.between("operands", "border", -1, _FAR)
    inside = (border < 0) | (border + length <= len(tables.program.constants))
    tables.require("operands", inside, "its border is outside the constants")
    tables.in_proportion("the length of an operand", length.max(initial=0))


def _check_codes(tables: _Tables) -> None:
    codes, program = tables.codes, tables.program
    kind, lanes, bias, summed = (codes[f] for f in ("kind", "lanes", "bias", "accumulator"))
    rows, columns = codes["q1"] - codes["q0"], codes["w1"] - codes["w0"]
    tables.between("codes", "kind", PROLOGUE, PIXEL + 1)
    concurrent = tables.check_lattices("codes", kind == PIXEL)
    tables.between("codes", "level", 0, _FAR)
    tables.between("codes", "together", 1, np.where((kind == PIXEL) & (rows == 1), 1 << 10, 2))
    tables.between("codes", "lanes", 1, 1 << 24)
    tables.between("codes", "parts", 0, 1 << 10)
    tables.between("codes", "registers", codes["parts"], 1 << 16)
    tables.between("codes", "bias", -1, _FAR)
    tables.between("codes", "weight", -1, len(program.weight_table))
    outputs = codes["parts"] * lanes
    inside = (bias < 0) | (bias + outputs <= len(program.constants))
    tables.require("codes", inside, "its bias is outside the constants")
    tables.between("codes", "accumulator", -1, len(program.operands))
    sums = np.flatnonzero(summed >= 0)
    tables.check_uses("codes", sums, summed[sums], written=False)
    same = tables.operands["length"][summed[sums]] == outputs[sums]
    tables.require("codes", same, "its accumulator has another length than parts * lanes", sums)
    tables.in_proportion("the registers of a code", (codes["registers"] * (lanes + 15.0)).max(initial=0))
    code, operation = tables.members("codes", "operation", "operations")
    stores = tables.operations["opcode"][operation] == OPCODE["store"]
    stored = tables.operations["b"][operation[stores]]
    tables.check_uses("codes", code[stores], stored, written=True)
    places = np.zeros(len(kind))
    np.maximum.at(places, code[stores], tables.buffers["positions"][tables.operands["buffer"][stored]])
    cells = np.where(kind == PROLOGUE, rows.astype(float) * columns, np.where(kind == ROW, columns, concurrent))
    tables.require("codes", cells <= places, "more of its cells run together than it stores")


def _check_segments(tables: _Tables) -> None:
    code, segment = tables.members("codes", "segment", "segments")
    kind, operand, row, length = (tables.segments[f][segment] for f in ("kind", "operand", "row", "length"))
    weight, outputs = tables.codes["weight"][code], (tables.codes["parts"] * tables.codes["lanes"])[code]
    tables.require("codes", weight >= 0, "it has segments but no weight", code)
    tables.between("segments", "kind", DENSE, INDEX + 1)
    tables.between("segments", "length", 1, _FAR)
    tables.between("segments", "row", 0, _FAR)
    tables.check_uses("codes", code, operand, written=False)
    inside = row + length <= tables.weight_table["rows"][weight]
    tables.require("segments", inside, "its rows are outside the weight", segment)
    same = tables.weight_table["columns"][weight] == outputs
    tables.require("segments", same, "the weight has another number of columns than parts * lanes", segment)
    same = tables.operands["length"][operand] == np.where(kind == DENSE, length, 1)
    tables.require("segments", same, "its operand has another length", segment)
    inputs = np.bincount(code, np.where(kind == DENSE, length, 0), len(tables.program.codes))
    tables.in_proportion("the inputs of a code", inputs.max(initial=0))


def _check_operations(tables: _Tables) -> None:
    code, operation = tables.members("codes", "operation", "operations")
    opcode, dst, a, b, c = (tables.operations[f][operation] for f in ("opcode", "dst", "a", "b", "c"))
    lanes, registers = tables.codes["lanes"][code], tables.codes["registers"][code]

    def require(holds: np.ndarray, words: str) -> None:
        tables.require("operations", holds, words, operation)

    require((opcode >= 0) & (opcode < len(OPCODES)), "opcode is out of range")
    taken = np.asarray([register_arguments(name) for name in OPCODES])[opcode]
    for number, register in enumerate((a, b, c)):
        require((taken <= number) | ((register >= 0) & (register < registers)), "a register is out of range")
    store, load = opcode == OPCODE["store"], opcode == OPCODE["load"]
    require(store | ((dst >= 0) & (dst < registers)), "dst is out of range")
    tables.check_uses("codes", code[load], a[load], written=False)
    for moves, operand in ((load, a), (store, b)):
        same = tables.operands["length"][operand[moves]] == lanes[moves]
        tables.require("operations", same, "its operand has another length than the lanes", operation[moves])
    reduces = (opcode >= OPCODE["sum"]) & (opcode <= OPCODE["amin"])
    require(~reduces | ((b > 0) & (lanes % np.maximum(b, 1) == 0)), "its groups do not divide the lanes")
    x = tables.operations["x"][operation]
    require((opcode != OPCODE["mulmod"]) | ((x >= 1) & (x <= _FARTHER)), "x is no modulus")


def _check_draws(tables: _Tables, head: Head, order: Order) -> None:
    draws, lengths = tables.draws, tables.operands["length"]
    concurrent = tables.check_lattices("draws", np.ones(len(draws["a"]), dtype=bool))
    tables.between("draws", "channels", 1, order.channels + 1)
    tables.between("draws", "channel0", 0, order.channels)
    beyond = draws["channel0"] + draws["channels"] > order.channels
    tables.require("draws", ~beyond, "it draws channels that the event does not have")
    tables.between("draws", "a b", -(1 << 21), 1 << 21)
    tables.between("draws", "c", -_FAR, _FAR)
    cells = np.flatnonzero((draws["q0"] < draws["q1"]) & (draws["w0"] < draws["w1"]))
    tables.check_positions("draws", cells, *(draws[f][cells] for f in ("a", "q0", "q1", "b", "w0", "w1", "c")))
    coupled = order.channels if head.coupled is None else head.coupled
    tables.require(
        "draws", (coupled == 1) | (draws["channels"] == coupled), f"the head draws {coupled} channels at once"
    )
    draw, operand = tables.members("draws", "parameter", "operands")
    tables.check_uses("draws", draw, operand, written=False)
    given = np.bincount(draw, lengths[operand], len(draws["a"]))
    needed = draws["channels"] // coupled * head.parameters_per_group
    tables.require("draws", given == needed, "it reads another number of parameters than the head needs")
    draw, operand = tables.members("draws", "input", "operands")
    tables.check_uses("draws", draw, operand, written=True)
    given = np.bincount(draw, lengths[operand] == 1, len(draws["a"]))
    same = (given == draws["channels"]) & (np.bincount(draw, minlength=len(draws["a"])) == draws["channels"])
    tables.require("draws", same, "it has not one input of length 1 for each channel")
    places = tables.buffers["positions"][tables.operands["buffer"][operand]]
    tables.require("draws", concurrent[draw] <= places, "more of its cells run together than it writes", draw)


def _check_packed(tables: _Tables) -> None:
    """That matrices are not packed many times over: codes may share one, each in an arrangement of its own."""
    segments, packed = list(zip(*(tables.segments[f].tolist() for f in ("kind", "row", "length")), strict=True)), {}
    fields = ("weight", "parts", "lanes", "segment0", "segment1")
    for weight, parts, lanes, first, last in zip(*(tables.codes[f].tolist() for f in fields), strict=True):
        width, dense = parts * (lanes + 15), []
        for kind, row, length in segments[first:last]:
            if kind == DENSE:
                dense.append((row, length))
            else:
                packed[weight, row, length, parts, lanes] = length * width
        packed[weight, tuple(dense), parts, lanes] = sum(length for _, length in dense) * width
    tables.in_proportion("the packed weights", sum(packed.values()))
