"""Rows of a buffer that several instructions store in parts: gathered in a buffer of their own, then stored whole."""

from __future__ import annotations

from dataclasses import replace

from fastgen.generate.ir.instructions import (
    PIXEL,
    STATE,
    Attend,
    Box,
    Buffer,
    Compute,
    Draw,
    Instruction,
    Operand,
    Operation,
)
from fastgen.generate.ir.opcodes import OPCODE
from fastgen.generate.ir.program import Program


def stores_of(program: Program, number: int) -> list[tuple[Instruction, Operand]]:
    """Returns the operands by which Computes store to a buffer."""
    found = []
    for instruction in program.computes:
        for operation in program.operations[instruction.body.operation0 : instruction.body.operation1]:
            if operation.opcode == OPCODE["store"] and program.operands[operation.b].buffer == number:
                found.append((instruction, program.operands[operation.b]))
    return found


def with_gathered_rows(program: Program, number: int) -> Program | None:
    """Returns the program with one Compute that stores all channels of a buffer's positions, after those of parts.

    The parts are stored to a new ring, as long as steps may run at once, which only the new Compute reads. It runs at
    the level after theirs, which is free in a sequence but for sums that are taken ahead. None where the parts are not
    all channels of the same cells of a sequence, or where their reader runs at the next level.
    """
    stores = stores_of(program, number)
    if not _alike(program, stores, number):
        return None
    buffer, (instruction, operand) = program.buffers[number], stores[0]
    level = max(i.level for i, _ in stores) + 1
    writers = {id(i) for i, _ in stores}
    at = 1 + max(place for place, i in enumerate(program.instructions) if id(i) in writers)
    while at < len(program.instructions) and _runs_until(program.instructions[at], level):
        at += 1
    for place, reader in enumerate(program.instructions):
        reads = isinstance(reader.body, Attend) and number in (
            program.operands[n].buffer for n in (reader.body.key, reader.body.value)
        )
        if reads and (reader.when != PIXEL or reader.level <= level or place < at):
            return None
    loops = [i.loop for i in program.instructions[at - 1 : at + 1]]
    if len(loops) == 2 and loops[0] == loops[1] != 0:
        return None
    positions = min(buffer.positions, program.lookahead * max(1, operand.map.column_stride))
    operands, operations, ring = list(program.operands), list(program.operations), len(program.buffers)
    for place in range(len(operands)):
        if any(operands[place] is stored for _, stored in stores):
            operands[place] = replace(operands[place], buffer=ring)
    whole = [Operand(n, 0, 1, buffer.channels, replace(operand.map), Box()) for n in (ring, number)]
    operations += [
        Operation(OPCODE["load"], 0, len(operands)),
        Operation(OPCODE["store"], 0, 0, len(operands) + 1),
    ]
    body = Compute(0, 0, -1, -1, -1, 0, buffer.channels, len(operations) - 2, len(operations), 1)
    made = Instruction(PIXEL, level, 0, replace(instruction.domain), body)
    instructions = [*program.instructions[:at], made, *program.instructions[at:]]
    buffers = [*program.buffers, Buffer(STATE, buffer.channels, positions, program.state_size)]
    return replace(
        program, buffers=buffers, operands=operands + whole, operations=operations, instructions=instructions,
        state_size=program.state_size + -(-positions * buffer.channels // 16) * 16,
    )  # fmt: skip


def _runs_until(instruction: Instruction, level: int) -> bool:
    return not isinstance(instruction.body, Draw) and instruction.when == PIXEL and instruction.level <= level


def _alike(program: Program, stores: list[tuple[Instruction, Operand]], number: int) -> bool:
    """Whether the stores are all channels of a buffer, each once, at the same cells of a sequence."""
    instruction, operand = stores[0]
    channels = [
        c for _, o in stores for c in range(o.channel, o.channel + o.length * o.channel_stride, o.channel_stride)
    ]
    same = all(
        i.when == PIXEL and not i.loop and i.domain == instruction.domain and o.map == operand.map and o.box == Box()
        for i, o in stores
    )
    sequence = program.row_length >= program.steps and instruction.domain.rows == 1 and operand.map.column_stride > 0
    return same and sequence and sorted(channels) == list(range(program.buffers[number].channels))
