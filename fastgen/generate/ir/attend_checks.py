"""Checks of attention in a program that comes from a file."""

from __future__ import annotations

import numpy as np

from fastgen.generate.ir.instructions import CONTEXT, INT8, PIXEL, PROLOGUE
from fastgen.generate.ir.opcodes import LANES, OPCODE, OPCODES
from fastgen.generate.ir.program_tables import FAR, FARTHER, Cells, Tables

_MOST_KEYS = 1 << 31


def check_attends(tables: Tables) -> None:
    """Raises ValueError, naming the record, unless any machine can run the program's attention.

    Every key lies in its buffer and every channel of a score operand in its own, at every cell.
    """
    _check_fields(tables)
    _check_key_runs(tables)
    _Attends(tables).check()


def _check_fields(tables: Tables) -> None:
    attends, operands = tables.attends, tables.operands
    tables.between("attends", "when", PROLOGUE, PIXEL + 1)
    together = tables.check_domains("attends")
    cells = Cells.of(attends, "domain")
    tables.require("attends", (cells.frame0 == 0) & (cells.frame1 == 1), "it attends in other frames than frame 0")
    tables.between("attends", "level", 0, FAR)
    tables.between("attends", "query key value out", 0, len(tables.program.operands))
    tables.between("attends", "groups", 1, 1 << 16)
    tables.between("attends", "heads", attends["groups"], 1 << 16)
    tables.between("attends", "registers", 1, 1 << 10)
    tables.between("attends", "softmax", 0, 2)
    tables.between("attends", "least", -1, len(tables.program.constants))
    heads, groups = attends["heads"], attends["groups"]
    query, key, value, out = (operands["length"][attends[name]] for name in ("query", "key", "value", "out"))
    whole = (heads % groups == 0) & (key % groups == 0) & (value % groups == 0)
    fits = whole & (query == key // groups * heads) & (out == value // groups * heads)
    tables.require("attends", fits, "its operands have other channels than its heads")
    every = np.arange(len(heads))
    for name in ("query", "key", "value", "out"):
        used = attends[name]
        straight = (operands["channel_stride"][used] == 1) | (operands["length"][used] == 1)
        tables.require("attends", straight, "an operand must have channel_stride 1")
    tables.check_uses("attends", every, attends["query"], written=False)
    tables.check_uses("attends", every, attends["out"], written=True)
    for name in ("key", "value"):
        tables.check_rounded("attends", every, attends[name])
        form, group = (tables.buffers[field][operands["buffer"][attends[name]]] for field in ("format", "group"))
        own = (form != INT8) | (operands["length"][attends[name]] == groups * group)
        tables.require("attends", own, "its heads are not the channels that share a scale")
    places = tables.buffers["positions"][operands["buffer"][attends["out"]]]
    tables.require("attends", together <= places, "more of its cells run together than it stores")
    tables.check_maps("attends", "keys")


def _check_key_runs(tables: Tables) -> None:
    runs = tables.key_runs
    tables.between("key_runs", "low", 0, _MOST_KEYS)
    tables.between("key_runs", "high", runs["low"], FAR)
    tables.between("key_runs", "step", 1, _MOST_KEYS)
    for end in ("start", "end"):
        tables.check_maps("key_runs", end)
    tables.members("key_sets", "run", "key_runs")


class _Attends:
    """The key runs of every instruction at its cells: one record for each run of each key set that it may choose."""

    def __init__(self, tables: Tables) -> None:
        self.tables, attends = tables, tables.attends
        cells = Cells.of(attends, "domain")
        empty = cells.empty
        least, most = _values(tables, attends["keys.row_stride"], attends["keys.column_stride"],
                              attends["keys.offset"], cells)  # fmt: skip
        size = len(tables.program.key_sets)
        tables.require("attends", empty | ((least >= 0) & (most < size)), "a key set is out of range")
        counts = np.where(empty, 0, most - least + 1).astype(np.int64)
        tables.in_proportion("the key sets of all instructions", counts.sum())
        attend = np.repeat(np.arange(len(counts)), counts)
        number = np.arange(len(attend)) - np.repeat(np.cumsum(counts) - counts - least.astype(np.int64), counts)
        own = self._own_cells(attend, number, Cells(*(end[attend] for end in cells)))
        first, last = (tables.key_sets[name][number] for name in ("run0", "run1"))
        tables.in_proportion("the key runs of all instructions", (last - first).sum())
        chosen = np.repeat(np.arange(len(attend)), last - first)
        self.set = chosen
        self.attend = attend[chosen]
        self.run = np.arange(len(chosen)) - np.repeat(np.cumsum(last - first) - (last - first) - first, last - first)
        self.cells = Cells(*(end[chosen] for end in own))

    def _own_cells(self, attend: np.ndarray, number: np.ndarray, cells: Cells) -> Cells:
        """Returns the cells that have a key set: one cell where every cell has a set of its own."""
        row_stride, column_stride, offset = (
            self.tables.attends[f"keys.{name}"][attend] for name in ("row_stride", "column_stride", "offset")
        )
        rows, columns, _ = cells.sizes
        alone = (column_stride >= 1) & ((rows <= 1) | (row_stride >= column_stride * columns))
        rest = number - offset - row_stride * cells.row0 - column_stride * cells.column0
        divisor = np.where(alone & (rows > 1), row_stride, 1)
        row = np.where(rows > 1, rest // divisor, 0)
        along = np.where(rows > 1, rest % divisor, rest)
        column, off = np.divmod(along, np.maximum(column_stride, 1))
        inside = (rest >= 0) & (off == 0) & (row < rows) & (column < columns)
        row0 = np.where(alone, cells.row0 + row, cells.row0)
        column0 = np.where(alone, cells.column0 + column, cells.column0)
        row1, column1 = np.where(alone, row0 + inside, cells.row1), np.where(alone, column0 + 1, cells.column1)
        return Cells(row0, row1, column0, column1, cells.frame0, cells.frame1)

    def check(self) -> None:
        tables, attends = self.tables, self.tables.attends
        count = self._counts()
        seen = count > 0
        least, most = self._bounds(np.zeros((3, len(count))), np.ones(len(count)))
        total = np.zeros(int(self.set.max(initial=-1)) + 1)
        np.add.at(total, self.set, count)
        for name in ("key", "value"):
            operand = attends[name][self.attend]
            used = {field: values[operand] for field, values in tables.operands.items()}
            buffer = {field: values[used["buffer"]] for field, values in tables.buffers.items()}
            zero = np.zeros(len(operand), np.int64)
            along = Cells(zero, zero + 1, least.astype(np.int64), most.astype(np.int64) + 1, zero, zero + 1)
            along = Cells(*(np.where(seen, end, 0) for end in along))
            tables.check_positions("attends", self.attend, used, along)
            box = Cells.of(used, "box")
            whole = (box.row0 <= 0) & (box.row1 >= 1) & (box.column0 <= least) & (most < box.column1)
            whole = ~seen | (whole & (box.frame0 <= 0) & (box.frame1 >= 1))
            tables.require("attends", whole, "its keys are not all in the box of their operand", self.attend)
            context = buffer["where"] == CONTEXT
            plain = (used["map.column_stride"] == 1) & (used["map.offset"] == 0)
            tables.require("attends", ~context | plain, "the keys of a context must be its positions", self.attend)
            fits = context | (total[self.set] <= buffer["positions"])
            tables.require("attends", fits, "it sees more keys at once than their buffer holds", self.attend)
        for field in ("operation", "weighting"):
            self._check_program(field, seen)

    def _counts(self) -> np.ndarray:
        """Returns how many keys of a run a cell sees, at most."""
        runs = {field: values[self.run] for field, values in self.tables.key_runs.items()}
        ends = [
            [runs[f"{end}.{name}"] for name in ("row_stride", "column_stride", "offset")] for end in ("start", "end")
        ]
        (least, _), (_, greatest) = (_values(self.tables, *map_, self.cells) for map_ in ends)
        _, between = _values(self.tables, *(b - a for a, b in zip(*ends, strict=True)), self.cells)
        most = np.minimum(runs["high"] - runs["low"], between)
        most = np.minimum(most, np.minimum(greatest - runs["low"], runs["high"] - least))
        return np.where(self.cells.empty, 0, np.ceil(np.maximum(most, 0) / runs["step"]))

    def _bounds(self, own: np.ndarray, stride: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the least and the greatest value of a map ``own`` of the cell plus ``stride`` times a key."""
        runs = {field: values[self.run] for field, values in self.tables.key_runs.items()}

        def along(end: str | None, key: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
            maps = [runs[f"{end}.{name}"] if end else 0 for name in ("row_stride", "column_stride", "offset")]
            maps[2] = maps[2] + key
            return _values(self.tables, *(o + stride * m for o, m in zip(own, maps, strict=True)), self.cells)

        firsts = along(None, runs["low"]), along("start", 0)
        lasts = along(None, runs["high"] - 1), along("end", -1)
        backwards = stride < 0
        lower = [np.maximum(a[0], b[0]) for a, b in (firsts, lasts)]
        upper = [np.minimum(a[1], b[1]) for a, b in (lasts, firsts)]
        return np.where(backwards, lower[1], lower[0]), np.where(backwards, upper[1], upper[0])

    def _check_program(self, field: str, seen: np.ndarray) -> None:
        tables = self.tables
        attend, operation = tables.members("attends", field, "operations")
        opcode, dst, a, b, c = (tables.operations[f][operation] for f in ("opcode", "dst", "a", "b", "c"))
        tables.require("operations", (opcode >= 0) & (opcode < len(OPCODES)), "opcode is out of range", operation)
        lanes = np.asarray([o.form == LANES for o in OPCODES.values()])[opcode] | (opcode == OPCODE["load"])
        tables.require("operations", lanes, "only loads and operations lane by lane make scores", operation)
        registers = tables.attends["registers"][attend]
        taken = np.asarray([o.registers for o in OPCODES.values()])[opcode]
        inside = (dst >= 0) & (dst < registers)
        for number, register in enumerate((a, b, c)):
            inside &= (taken <= number) | ((register >= 0) & (register < registers))
        tables.require("operations", inside, "a register is out of range", operation)
        load = opcode == OPCODE["load"]
        self._check_loads(attend[load], a[load], operation[load], seen)

    def _check_loads(self, attend: np.ndarray, score: np.ndarray, operation: np.ndarray, seen: np.ndarray) -> None:
        tables = self.tables
        inside = (score >= 0) & (score < len(tables.program.score_operands))
        tables.require("operations", inside, "a score operand is out of range", operation)
        scores = {name: values[score] for name, values in tables.score_operands.items()}
        for name, limit in (("row_stride", 1 << 31), ("column_stride", 1 << 31), ("key_stride", 1 << 31),
                            ("head_stride", 1 << 31), ("offset", FAR)):  # fmt: skip
            tables.require("operations", np.abs(scores[name]) < limit, f"its {name} is out of range", operation)
        tables.check_uses("attends", attend, scores["operand"], written=False)
        operands = {name: values[scores["operand"]] for name, values in tables.operands.items()}
        cells = Cells.of({name: values[attend] for name, values in tables.attends.items()}, "domain")
        box = Cells.of(operands, "box")
        held = (box.row0 <= cells.row0) & (cells.row1 <= box.row1)
        held &= (box.column0 <= cells.column0) & (cells.column1 <= box.column1)
        held &= (box.frame0 <= cells.frame0) & (cells.frame1 <= box.frame1)
        tables.require("operations", cells.empty | held, "it has no value at some cells", operation)
        channels = tables.buffers["channels"][operands["buffer"]]
        heads = scores["head_stride"] * (tables.attends["heads"][attend] - 1)
        for place in range(len(attend)):
            mine = seen & (self.attend == attend[place])
            own = np.stack([np.full(len(mine), scores[n][place]) for n in ("row_stride", "column_stride", "offset")])
            least, most = self._bounds(own.astype(float), np.full(len(mine), float(scores["key_stride"][place])))
            low, high = min(0, heads[place]), max(0, heads[place])
            fits = ~mine | ((least + low >= 0) & (most + high < channels[place]))
            tables.require(
                "operations", fits, "it addresses a channel outside its buffer", np.full(len(mine), operation[place])
            )


def _values(tables: Tables, row_stride, column_stride, offset, cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """Returns the least and the greatest value of maps at the cells, by terms that float64 holds exactly."""
    rows = np.stack([row_stride * cells.row0.astype(float), row_stride * (cells.row1 - 1.0)])
    columns = np.stack([column_stride * cells.column0.astype(float), column_stride * (cells.column1 - 1.0)])
    if (np.abs(rows) > FARTHER).any() or (np.abs(columns) > FARTHER).any():
        raise ValueError("attends must have keys within 2^52 of one another, got larger ones")
    return rows.min(0) + columns.min(0) + offset, rows.max(0) + columns.max(0) + offset
