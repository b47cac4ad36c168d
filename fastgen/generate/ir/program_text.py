"""Step programs as text: one line a buffer, one line an instruction.

An instruction's line has its phase and level, the cells (frames, if there are several, x rows x columns) of its domain
and its schedule, the loop that
it is in, then what it does. ``b3[column - 2]`` is buffer 3 at a position, with ``[0:6]`` its channels where not all of
them are meant and ``{column >= 2, else c8}`` the box of cells outside which the constants from 8 on are read;
``W1[6:12]`` are rows of a weight matrix, and ``W1[6:12][b0[column]]`` the one of them that an index chooses; ``s0``,
``s1`` are the parts of the sums; ``r0``, ``r1`` are values of the lane program that are used more than once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from fastgen.generate.ir.instructions import (
    CONTEXT,
    FLOAT32,
    FORMATS,
    INDEX,
    PIXEL,
    PROLOGUE,
    UNBOUNDED,
    AccessMap,
    Attend,
    Box,
    Buffer,
    Compute,
    Draw,
    Instruction,
    IterationDomain,
    KeyRun,
    KeySet,
    Operand,
    Operation,
    ScoreOperand,
    Segment,
)
from fastgen.generate.ir.opcodes import GROUP, NAMES, OPCODES, XY, X

_WHERE = ("state", "constant", "context")
_WHEN = ("prologue", "row", "pixel")
_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "eq": "==", "ne": "!=", "bitand": "&",
    "bitor": "|", "bitxor": "^", "addc": "+", "mulc": "*",
}  # fmt: skip


class Tables(Protocol):
    """The tables of a program."""

    row_length: int
    buffers: list[Buffer]
    operands: list[Operand]
    segments: list[Segment]
    operations: list[Operation]
    key_sets: list[KeySet]
    key_runs: list[KeyRun]
    score_operands: list[ScoreOperand]


class ProgramText:
    """Prints the records of a program."""

    def __init__(self, program: Tables) -> None:
        self.row_length = program.row_length
        self.buffers, self.operands, self.segments = program.buffers, program.operands, program.segments
        self.operations, self.key_sets = program.operations, program.key_sets
        self.key_runs, self.score_operands = program.key_runs, program.score_operands

    def buffer(self, number: int) -> str:
        buffer = self.buffers[number]
        size = f"{buffer.channels} channels"
        if buffer.where == CONTEXT:
            return f"b{number:<4} {_WHERE[buffer.where]} {buffer.offset}, {size}"
        if buffer.format != FLOAT32:
            size += f" of {FORMATS[buffer.format]}" + (f", a scale for {buffer.group}" if buffer.group else "")
        return f"b{number:<4} {_WHERE[buffer.where]} at {buffer.offset}, {buffer.positions} positions x {size}"

    def instruction(self, number: int, instruction: Instruction) -> str:
        body = instruction.body
        if isinstance(body, Attend):
            does = self._attend(body)
        else:
            does = self._compute(body) if isinstance(body, Compute) else self._draw(body)
        block = f", {body.block} columns at once" if isinstance(body, Compute) and body.block > 1 else ""
        block += f", loop {instruction.loop}" if instruction.loop else ""
        when = f"{_WHEN[instruction.when]} {instruction.level}"
        return f"{number:<5} {when:<10} {self._domain(instruction.when, instruction.domain)}{block}: {does}"

    # ---- when and where

    def _domain(self, when: int, domain: IterationDomain) -> str:
        cells = f"[{domain.row0}, {domain.row1}) x [{domain.column0}, {domain.column1})"
        if (domain.frame0, domain.frame1) != (0, 1):
            cells = f"[{domain.frame0}, {domain.frame1}) x {cells}"
        frame_stride = 0 if domain.frames <= 1 and not domain.frame0 else domain.frame_stride
        if when == PROLOGUE:
            return f"cells {cells}"
        if when != PIXEL:
            return (
                f"cells {cells}, row of steps = {_affine(AccessMap(domain.row_stride, 0, domain.delay, frame_stride))}"
            )
        row_stride = 0 if domain.rows <= 1 and not domain.row0 else self.row_length * domain.row_stride
        step = AccessMap(row_stride, domain.column_stride, domain.delay, self.row_length * frame_stride)
        return f"cells {cells}, step = {_affine(step)}"

    def _operand(self, number: int, written: bool = False) -> str:
        operand = self.operands[number]
        last = operand.channel + (operand.length - 1) * operand.channel_stride
        channels = f"[{operand.channel}:{last + 1}:{operand.channel_stride}]"
        if operand.channel_stride == 1:
            whole = operand.channel == 0 and operand.length == self.buffers[operand.buffer].channels
            channels = "" if whole else f"[{operand.channel}:{last + 1}]"
        elif operand.channel_stride == 0 or operand.length == 1:
            channels = f"[{operand.channel}]" + (f" * {operand.length} lanes" if operand.length > 1 else "")
        border = "" if written else ", else 0" if operand.border < 0 else f", else c{operand.border}"
        return f"b{operand.buffer}[{_affine(operand.map)}]{channels}{_box(operand.box, border)}"

    # ---- what

    def _draw(self, draw: Draw) -> str:
        read = ", ".join(self._operand(n) for n in range(draw.parameter0, draw.parameter1))
        written = ", ".join(self._operand(n, written=True) for n in range(draw.input0, draw.input1))
        channels = f"channels {draw.channel0}:{draw.channel0 + draw.channels}"
        return f"draw {channels} of position {_affine(draw.map)} from {read}; {written} = their inputs"

    def _attend(self, attend: Attend) -> str:
        query, key, value = (self._operand(n) for n in (attend.query, attend.key, attend.value))
        groups = f" in {attend.groups} groups" if attend.groups != attend.heads else ""
        score = self._keywise(attend.operation0, attend.operation1, f"{query} . {key.replace('column', 'key')}")
        weight = self._keywise(
            attend.weighting0, attend.weighting1, f"softmax({_bare(score)})" if attend.softmax else score
        )
        least = "" if attend.least < 0 else f", whose greatest is c{attend.least} or more"
        return (
            f"{self._operand(attend.out, written=True)} = sum over {self._keys(attend.keys)} of {_bare(weight)} * "
            f"{value.replace('column', 'key')}{least} ({attend.heads} heads{groups})"
        )

    def _keys(self, keys: AccessMap) -> str:
        """ "keys max(0, column - 7) .. min(64, column)" (to the end of a context), or the map of a set of many."""
        if keys.row_stride or keys.column_stride:
            return f"key set {_affine(keys)}"
        chosen = self.key_sets[keys.offset]
        runs = [self._key_run(run) for run in self.key_runs[chosen.run0 : chosen.run1]]
        return "keys " + (", ".join(runs) or "none")

    def _key_run(self, run: KeyRun) -> str:
        first = str(run.low) if run.start == AccessMap(0, 0, run.low) else f"max({run.low}, {_affine(run.start)})"
        stop = (
            "end"
            if run.high == UNBOUNDED
            else str(run.high)
            if run.end == AccessMap(0, 0, run.high)
            else f"min({run.high}, {_affine(run.end)})"
        )
        return f"[{first}, {stop})" + (f" by {run.step}" if run.step > 1 else "")

    def _keywise(self, first: int, last: int, held: str) -> str:
        """Returns what a lane program over the keys leaves in register 0."""
        registers = {0: held}
        for operation in self.operations[first:last]:
            if NAMES[operation.opcode] == "load":
                registers[operation.dst] = self._score_operand(self.score_operands[operation.a])
            else:
                registers[operation.dst] = self._value(operation, registers)
        return registers[0]

    def _score_operand(self, given: ScoreOperand) -> str:
        operand = self.operands[given.operand]
        names = ("row", "column", "key", "head")
        strides = (given.row_stride, given.column_stride, given.key_stride, given.head_stride)
        channel = _sum([*zip(strides, names, strict=True), (given.offset, "")])
        return f"b{operand.buffer}[{_affine(operand.map)}][{channel}]"

    def _compute(self, compute: Compute) -> str:
        said = []
        if compute.parts:
            names = ", ".join(f"s{part}" for part in range(compute.parts))
            said.append(f"{names} = {self._sums(compute)} ({compute.parts} x {compute.lanes})")
        return "; ".join(said + self._lane_program(compute))

    def _sums(self, compute: Compute) -> str:
        terms = []
        if compute.accumulator >= 0:
            terms.append(self._operand(compute.accumulator))
        elif compute.bias >= 0:
            terms.append(f"c{compute.bias}")
        for segment in self.segments[compute.segment0 : compute.segment1]:
            rows = f"W{compute.weight}[{segment.row}:{segment.row + segment.length}]"
            read = self._operand(segment.operand)
            terms.append(f"{rows}[{read}]" if segment.kind == INDEX else f"{read} @ {rows}")
        return " + ".join(terms) or "0"

    def _lane_program(self, compute: Compute) -> list[str]:
        """Assignments: the stores, and what more than one of them or of their parts uses."""
        operations = self.operations[compute.operation0 : compute.operation1]
        uses = _uses(operations, compute.parts)
        held = {part: f"s{part}" for part in range(compute.parts)}
        said, named = [], 0
        for number, operation in enumerate(operations):
            if NAMES[operation.opcode] == "store":
                said.append(f"{self._operand(operation.b, written=True)} = {_bare(held.get(operation.a, '?'))}")
                continue
            value = self._value(operation, held)
            if uses[number] > 1:
                said.append(f"r{named} = {_bare(value)}")
                value, named = f"r{named}", named + 1
            held[operation.dst] = value
        return said

    def _value(self, operation: Operation, held: dict[int, str]) -> str:
        name = NAMES[operation.opcode]
        opcode = OPCODES[name]
        if name == "load":
            return self._operand(operation.a)
        read = [held.get(n, "?") for n in (operation.a, operation.b, operation.c)[: opcode.registers]]
        numbers = {X: [operation.x], XY: [operation.x, operation.y], GROUP: [operation.b]}.get(opcode.parameters, [])
        given = [*read, *(f"{number:.6g}" for number in numbers)]
        if name == "const":
            return given[0]
        if name in _INFIX:
            return f"({f' {_INFIX[name]} '.join(given)})"
        return f"{name}({', '.join(map(_bare, given))})"


def _uses(operations: Sequence[Operation], parts: int) -> Counter[int]:
    """Counts how often the result of each operation is read, by its number."""
    maker: dict[int, int] = dict.fromkeys(range(parts), -1)
    uses: Counter[int] = Counter()
    for number, operation in enumerate(operations):
        registers = OPCODES[NAMES[operation.opcode]].registers
        uses.update(maker.get(n, -1) for n in (operation.a, operation.b, operation.c)[:registers])
        if NAMES[operation.opcode] != "store":
            maker[operation.dst] = number
    return uses


def _bare(value: str) -> str:
    """Removes the parentheses around all of it."""
    if not value.startswith("("):
        return value
    depth = 0
    for place, character in enumerate(value):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return value[1:-1] if place == len(value) - 1 else value
    return value


def _affine(access: AccessMap) -> str:
    """ "10 row + column - 1" """
    strides = (access.frame_stride, "frame"), (access.row_stride, "row"), (access.column_stride, "column")
    return _sum([*strides, (access.offset, "")])


def _sum(terms: Sequence[tuple[int, str]]) -> str:
    text = ""
    for factor, name in terms:
        if factor:
            size = " ".join(part for part in ("" if name and abs(factor) == 1 else str(abs(factor)), name) if part)
            sign = "- " if factor < 0 else "+ "
            text += f" {sign}{size}" if text else (f"-{size}" if factor < 0 else size)
    return text or "0"


def _box(box: Box, border: str) -> str:
    ends = [("frame", box.frame0, box.frame1), ("row", box.row0, box.row1), ("column", box.column0, box.column1)]
    limits = [f"{name} >= {low}" for name, low, _ in ends if low > 0]
    limits += [f"{name} < {high}" for name, _, high in ends if high < UNBOUNDED]
    return "{" + ", ".join(limits) + border + "}" if limits else ""
