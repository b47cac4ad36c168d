"""Checks of a program that comes from a file: what it addresses, how long it runs, how much memory it takes.

They serve both machines and come before any work. The C++ machine checks once more what its own memory depends on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastgen.generate.heads import Head
from fastgen.generate.ir.attend_checks import check_attends
from fastgen.generate.ir.instructions import (
    BFLOAT16,
    BODIES,
    CONTEXT,
    DENSE,
    FLOAT32,
    FORMATS,
    INDEX,
    INT8,
    PIXEL,
    PROLOGUE,
    STATE,
)
from fastgen.generate.ir.opcodes import OPCODE, OPCODES, REDUCTIONS
from fastgen.generate.ir.program import Program
from fastgen.generate.ir.program_tables import FAR, FARTHER, Cells, Tables
from fastgen.generate.orders import Order


def check_program(program: Program, head: Head, order: Order, contexts: Sequence[int]) -> None:
    """Raises ValueError, naming the record, unless any machine can run the program.

    Every index lies in its table, every operand in its buffer at every cell of the domains that use it, every row in
    its matrix, every register in its instruction, every draw in the event; no sum leaves 64 bits; no instruction runs
    more cells at once than it stores; and no memory is out of proportion to the weights and the event.

    Args:
        program: as ``Program.from_tensors`` returns it.
        head, order: those of its event.
        contexts: the number of channels of each context.
    """
    tables = Tables(program)
    _check_header(program, order)
    _check_buffers(tables, order, contexts)
    _check_operands(tables)
    _check_loops(tables)
    _check_computes(tables)
    _check_segments(tables)
    _check_operations(tables)
    check_attends(tables)
    _check_draws(tables, head, order)
    _check_packed(tables)


def _check_header(program: Program, order: Order) -> None:
    allowed = {"steps": (order.length, FAR), "row_length": (1, FAR), "state_size": (0, FAR), "lookahead": (1, FAR)}
    for name, (least, most) in allowed.items():
        if not least <= getattr(program, name) <= most:
            raise ValueError(f"{name} must be in {least} .. {most}, got {getattr(program, name)}")


def _check_buffers(tables: Tables, order: Order, contexts: Sequence[int]) -> None:
    program = tables.program
    where, channels, positions, offset = (tables.buffers[f] for f in ("where", "channels", "positions", "offset"))
    tables.between("buffers", "where", STATE, CONTEXT + 1)
    tables.between("buffers", "channels", 1, 1 << 31)
    tables.between("buffers", "positions", np.where(where == CONTEXT, 0, 1), 1 << 31)
    tables.between("buffers", "offset", 0, np.where(where == CONTEXT, len(contexts), FAR))
    form, group = tables.buffers["format"], tables.buffers["group"]
    tables.between("buffers", "format", FLOAT32, np.where(where == STATE, len(FORMATS), 1))
    tables.between("buffers", "group", form == INT8, np.where(form == INT8, channels + 1, 1))
    groups = np.where(form == INT8, channels // np.maximum(group, 1), 0)
    tables.require(
        "buffers", groups * group == np.where(form == INT8, channels, 0), "its groups do not divide channels"
    )
    stride = np.select([form == FLOAT32, form == BFLOAT16], [channels, -(-channels // 2)], -(-channels // 4) + groups)
    sizes = np.asarray([program.state_size, len(program.constants), FAR])[where]
    end = offset + positions.astype(float) * stride
    tables.require("buffers", (where == CONTEXT) | (end <= sizes), "it lies outside the state or the constants")
    given = np.asarray([*contexts, 0])[np.where(where == CONTEXT, offset, -1)]
    tables.require("buffers", (where != CONTEXT) | (given == channels), "the context has another number of channels")
    event = min(order.channels * order.positions << 12, 1 << 28)
    tables.in_proportion("state_size", program.state_size, (1 << 24) + event)
    offset, rows, columns = (tables.weight_table[f] for f in ("offset", "rows", "columns"))
    tables.between("weight_table", "offset rows", 0, FAR)
    tables.between("weight_table", "columns", 1, FAR)
    inside = offset + rows.astype(float) * columns <= len(program.weights)
    tables.require("weight_table", inside, "it lies outside the weights")


def _check_operands(tables: Tables) -> None:
    channel, stride, length, border = (tables.operands[f] for f in ("channel", "channel_stride", "length", "border"))
    tables.between("operands", "buffer", 0, len(tables.program.buffers))
    channels = tables.buffers["channels"][tables.operands["buffer"]]
    tables.between("operands", "length", 1, 1 << 31)
    tables.between("operands", "channel", 0, channels)
    tables.between("operands", "channel_stride", 0, channels + 1)
    tables.require("operands", channel + (length - 1.0) * stride < channels, "its channels are outside its buffer")
    tables.check_maps("operands", "map")
    tables.between("operands", " ".join(f"box.{end}" for end in Cells._fields), -FAR, FAR)
    tables.between("operands", "border", -1, FAR)
    inside = (border < 0) | (border + length <= len(tables.program.constants))
    tables.require("operands", inside, "its border is outside the constants")
    tables.in_proportion("the length of an operand", length.max(initial=0))


def _check_loops(tables: Tables) -> None:
    """Checks that a loop has no draws, nor what does not run step by step, and that its instructions are neighbours."""
    kind, when, loop = (tables.instructions[f] for f in ("kind", "when", "loop"))
    tables.between("instructions", "loop", 0, FAR)
    looped, draws = loop > 0, list(BODIES).index("draws")
    tables.require("instructions", ~looped | ((kind != draws) & (when == PIXEL)), "a loop has no such instruction")
    first = np.flatnonzero(looped & (np.diff(loop, prepend=0) != 0))
    begins = first[np.unique(loop[first], return_index=True)[1]]
    neighbours = ~np.isin(np.arange(len(loop)), np.setdiff1d(first, begins))
    tables.require("instructions", neighbours, "the instructions of its loop do not lie side by side")


def _check_computes(tables: Tables) -> None:
    computes, program = tables.computes, tables.program
    when, lanes, bias, summed = (computes[f] for f in ("when", "lanes", "bias", "accumulator"))
    tables.between("computes", "when", PROLOGUE, PIXEL + 1)
    together = tables.check_domains("computes")
    rows, _, frames = Cells.of(computes, "domain").sizes
    tables.between("computes", "level", 0, FAR)
    tables.between("computes", "block", 1, np.where((when == PIXEL) & (rows == 1) & (frames == 1), 1 << 10, 2))
    tables.between("computes", "lanes", 1, 1 << 24)
    tables.between("computes", "parts", 0, 1 << 10)
    tables.between("computes", "registers", computes["parts"], 1 << 16)
    tables.between("computes", "bias", -1, FAR)
    tables.between("computes", "weight", -1, len(program.weight_table))
    outputs = computes["parts"] * lanes
    inside = (bias < 0) | (bias + outputs <= len(program.constants))
    tables.require("computes", inside, "its bias is outside the constants")
    tables.between("computes", "accumulator", -1, len(program.operands))
    sums = np.flatnonzero(summed >= 0)
    tables.check_uses("computes", sums, summed[sums], written=False)
    same = tables.operands["length"][summed[sums]] == outputs[sums]
    tables.require("computes", same, "its accumulator has another length than parts * lanes", sums)
    tables.in_proportion("the registers of an instruction", (computes["registers"] * (lanes + 15.0)).max(initial=0))
    compute, operation = tables.members("computes", "operation", "operations")
    stores = tables.operations["opcode"][operation] == OPCODE["store"]
    stored = tables.operations["b"][operation[stores]]
    tables.check_uses("computes", compute[stores], stored, written=True, rounded=True)
    tables.check_rounded("computes", compute[stores], stored)
    places = np.zeros(len(when))
    np.maximum.at(places, compute[stores], tables.buffers["positions"][tables.operands["buffer"][stored]])
    tables.require("computes", together <= places, "more of its cells run together than it stores")


def _check_segments(tables: Tables) -> None:
    compute, segment = tables.members("computes", "segment", "segments")
    kind, operand, row, length = (tables.segments[f][segment] for f in ("kind", "operand", "row", "length"))
    weight, outputs = tables.computes["weight"][compute], (tables.computes["parts"] * tables.computes["lanes"])[compute]
    tables.require("computes", weight >= 0, "it has segments but no weight", compute)
    tables.between("segments", "kind", DENSE, INDEX + 1)
    tables.between("segments", "length", 1, FAR)
    tables.between("segments", "row", 0, FAR)
    tables.check_uses("computes", compute, operand, written=False)
    inside = row + length <= tables.weight_table["rows"][weight]
    tables.require("segments", inside, "its rows are outside the weight", segment)
    same = tables.weight_table["columns"][weight] == outputs
    tables.require("segments", same, "the weight has another number of columns than parts * lanes", segment)
    same = tables.operands["length"][operand] == np.where(kind == DENSE, length, 1)
    tables.require("segments", same, "its operand has another length", segment)
    inputs = np.bincount(compute, np.where(kind == DENSE, length, 0), len(tables.computes["when"]))
    tables.in_proportion("the inputs of an instruction", inputs.max(initial=0))


def _check_operations(tables: Tables) -> None:
    compute, operation = tables.members("computes", "operation", "operations")
    opcode, dst, a, b, c = (tables.operations[f][operation] for f in ("opcode", "dst", "a", "b", "c"))
    lanes, registers = tables.computes["lanes"][compute], tables.computes["registers"][compute]

    def require(holds: np.ndarray, words: str) -> None:
        tables.require("operations", holds, words, operation)

    require((opcode >= 0) & (opcode < len(OPCODES)), "opcode is out of range")
    taken = np.asarray([o.registers for o in OPCODES.values()])[opcode]
    for number, register in enumerate((a, b, c)):
        require((taken <= number) | ((register >= 0) & (register < registers)), "a register is out of range")
    store, load = opcode == OPCODE["store"], opcode == OPCODE["load"]
    require(store | ((dst >= 0) & (dst < registers)), "dst is out of range")
    tables.check_uses("computes", compute[load], a[load], written=False)
    for moves, operand in ((load, a), (store, b)):
        same = tables.operands["length"][operand[moves]] == lanes[moves]
        tables.require("operations", same, "its operand has another length than the lanes", operation[moves])
    reduces = np.isin(opcode, [OPCODE[name] for name in REDUCTIONS])
    require(~reduces | ((b > 0) & (lanes % np.maximum(b, 1) == 0)), "its groups do not divide the lanes")
    x = tables.operations["x"][operation]
    require((opcode != OPCODE["mulmod"]) | ((x >= 1) & (x <= FARTHER)), "x is no modulus")


def _check_draws(tables: Tables, head: Head, order: Order) -> None:
    draws, lengths = tables.draws, tables.operands["length"]
    tables.between("draws", "when", PIXEL, PIXEL + 1)
    tables.between("draws", "level", 0, 1)
    together = tables.check_domains("draws")
    tables.between("draws", "channels", 1, order.channels + 1)
    tables.between("draws", "channel0", 0, order.channels)
    beyond = draws["channel0"] + draws["channels"] > order.channels
    tables.require("draws", ~beyond, "it draws channels that the event does not have")
    tables.check_maps("draws", "map")
    tables.check_positions("draws", np.arange(len(draws["when"])), draws, Cells.of(draws, "domain"))
    coupled = order.channels if head.coupled is None else head.coupled
    tables.require("draws", draws["channels"] % coupled == 0, f"the head draws {coupled} channels at once")
    draw, operand = tables.members("draws", "parameter", "operands")
    tables.check_uses("draws", draw, operand, written=False)
    given = np.bincount(draw, lengths[operand], len(draws["when"]))
    needed = draws["channels"] // coupled * head.parameters_per_group
    tables.require("draws", given == needed, "it reads another number of parameters than the head needs")
    draw, operand = tables.members("draws", "input", "operands")
    tables.check_uses("draws", draw, operand, written=True)
    given = np.bincount(draw, lengths[operand] == 1, len(draws["when"]))
    same = (given == draws["channels"]) & (np.bincount(draw, minlength=len(draws["when"])) == draws["channels"])
    tables.require("draws", same, "it has not one input of length 1 for each channel")
    places = tables.buffers["positions"][tables.operands["buffer"][operand]]
    tables.require("draws", together[draw] <= places, "more of its cells run together than it writes", draw)


def _check_packed(tables: Tables) -> None:
    """Checks that matrices are not packed too often: instructions may share one, each in its own arrangement."""
    segments, packed = list(zip(*(tables.segments[f].tolist() for f in ("kind", "row", "length")), strict=True)), {}
    fields = ("weight", "parts", "lanes", "segment0", "segment1")
    for weight, parts, lanes, first, last in zip(*(tables.computes[f].tolist() for f in fields), strict=True):
        width, dense = parts * (lanes + 15), []
        for kind, row, length in segments[first:last]:
            if kind == DENSE:
                dense.append((row, length))
            else:
                packed[weight, row, length, parts, lanes] = length * width
        packed[weight, tuple(dense), parts, lanes] = sum(length for _, length in dense) * width
    tables.in_proportion("the packed weights", sum(packed.values()))
