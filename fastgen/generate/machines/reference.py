"""The reference machine: what a step program means, in plain Python over torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastgen.generate.heads import Head
from fastgen.generate.ir.domain_cells import Cell, Rows, pixel_cells, row_cells
from fastgen.generate.ir.instructions import (
    CONSTANT,
    CONTEXT,
    FLOAT32,
    INDEX,
    PIXEL,
    PROLOGUE,
    ROW,
    UNBOUNDED,
    Attend,
    Compute,
    Draw,
    IterationDomain,
    KeyRun,
    Operand,
)
from fastgen.generate.ir.opcodes import NAMES
from fastgen.generate.ir.operation_values import apply_operation
from fastgen.generate.ir.program import Program
from fastgen.generate.machines.batch import FEW_SAMPLES, GenerationBatch, state_stride
from fastgen.generate.machines.draw_position import draw_position
from fastgen.generate.machines.rounded_rows import read_rows, rounded_rows

Cells = tuple[Tensor, Tensor, Tensor]
"""Rows, columns and frames of some cells of a domain, int64 ``[cells]`` each."""


class ReferenceMachine:
    """Runs a step program as ``fastgen.generate.ir.program`` tells it, instruction by instruction and cell by cell,
    over the whole batch.

    Sums are taken in float64 and rounded once; everything else is float32. Registers that no operation wrote hold NaN.

    Args:
        program: the step program.
        head: draws and scores.
        weights: "float32", or "bfloat16" or "int8" (symmetric, one scale a column) for weights rounded to these.

    Raises:
        ValueError: an unknown format of weights.
    """

    def __init__(self, program: Program, head: Head, weights: str = "float32") -> None:
        if weights not in _ROUND:
            raise ValueError(f"weights must be one of {', '.join(_ROUND)}, got {weights!r}")
        self.program = program
        self.head = head
        self.weight_format = weights
        working = [i for i in program.instructions if not isinstance(i.body, Draw)]
        self._working = {when: [i for i in working if i.when == when] for when in (PROLOGUE, ROW, PIXEL)}
        self._draws = program.draws
        self._load(program.weights, program.constants)

    @property
    def state_stride(self) -> int:
        """Numbers between two samples' states in a batch."""
        return state_stride(self.program.state_size)

    def memory(self) -> int:
        """Returns the bytes of the weights as matrices."""
        return sum(matrix.nbytes for matrix in self.matrices)

    def runs_blocks(self, batch: int) -> bool:
        """Whether sums over earlier cells are taken for several steps at once."""
        return batch <= FEW_SAMPLES

    def refresh(self, weights: Tensor, constants: Tensor) -> None:
        """Takes new float arenas; raises ValueError unless their shapes are the old ones'."""
        for name, new, old in (
            ("weights", weights, self.program.weights),
            ("constants", constants, self.program.constants),
        ):
            if new.shape != old.shape:
                raise ValueError(f"{name} has shape {list(new.shape)}; the program has {list(old.shape)}")
        self._load(weights, constants)

    def prologue(self, run: GenerationBatch) -> None:
        """Computes what depends on no drawn element: once, before the first step."""
        for instruction in self._working[PROLOGUE]:
            domain = instruction.domain
            cells = _grid(domain, range(domain.row0, domain.row1), range(domain.frame0, domain.frame1))
            self._execute(instruction.body, run, cells)

    def advance(self, run: GenerationBatch, t0: int, t1: int) -> None:
        """Runs the steps ``t0 .. t1 - 1`` of a run that stands before step t0.

        Raises:
            ValueError: the steps are out of range; the network's output is NaN; an index is outside its table; a known
                level is no level.
            RuntimeError: another thread is advancing the run, or an exception left it within a step.
        """
        if not 0 <= t0 <= t1 <= self.program.steps:
            raise ValueError(f"steps must be within 0 .. {self.program.steps}, got {t0} .. {t1}")
        for t in run.each_step(t0, t1):
            if t % self.program.row_length == 0:
                self._start_row(run, t // self.program.row_length)
            for instruction in self._working[PIXEL]:
                domain, body = instruction.domain, instruction.body
                block = body.block if run.ahead and isinstance(body, Compute) else 1
                for row, column, frame in pixel_cells(domain, t, self.program.row_length):
                    if (column - domain.column0) % block == 0:
                        columns = range(column, min(column + block, domain.column1))
                        self._execute(body, run, _grid(domain, [row], [frame], columns))
            for draw in self._draws:
                for cell in pixel_cells(draw.domain, t, self.program.row_length):
                    self._draw(draw.body, run, cell)

    def absorb(self, run: GenerationBatch, t0: int, t1: int) -> None:
        """``advance`` for steps whose elements are all known.

        Raises:
            ValueError: an element drawn at one of these steps is not known; or as ``advance``.
        """
        for t in range(t0, t1):
            for draw in self._draws:
                for cell in pixel_cells(draw.domain, t, self.program.row_length):
                    known = torch.tensor(False)
                    if run.known is not None:
                        known = self._elements(run.known, draw.body, run, cell)
                    if not known.all():
                        raise ValueError(f"known is False for an element of step {t}; absorb needs all of them known")
        self.advance(run, t0, t1)

    def _load(self, weights: Tensor, constants: Tensor) -> None:
        self.constants = constants.float()
        self.matrices = []
        for weight in self.program.weight_table:
            matrix = weights[weight.offset : weight.offset + weight.rows * weight.columns].float()
            self.matrices.append(_ROUND[self.weight_format](matrix.reshape(weight.rows, weight.columns)).double())

    def _start_row(self, run: GenerationBatch, row: int) -> None:
        for instruction in self._working[ROW]:
            domain = instruction.domain
            for frame, rows in row_cells(domain, row):
                self._execute(instruction.body, run, _grid(domain, rows, [frame]))

    def _execute(self, body: Compute | Attend, run: GenerationBatch, cells: Cells) -> None:
        """Runs an instruction at cells independent of one another: so many at once that they take little memory."""
        if isinstance(body, Attend):
            for row, column, frame in zip(*cells, strict=True):
                self._attend(body, run, (row[None], column[None], frame[None]))
            return
        most = max(1, _VALUES_AT_ONCE // (body.lanes * max(body.registers, 1)))
        for rows, columns, frames in zip(*(axis.split(most) for axis in cells), strict=True):
            self._execute_cells(body, run, (rows, columns, frames))

    def _execute_cells(self, body: Compute, run: GenerationBatch, cells: Cells) -> None:
        shape = (run.state.shape[0], len(cells[0]), body.lanes)
        registers = [torch.full(shape, torch.nan, dtype=torch.float32) for _ in range(body.registers)]
        if body.parts:
            sums = self._gather_multiply(body, run, cells).split(body.lanes, -1)
            registers[: body.parts] = sums
        for operation in self.program.operations[body.operation0 : body.operation1]:
            name = NAMES[operation.opcode]
            if name == "load":
                registers[operation.dst] = self._read(operation.a, run, cells)
            elif name == "store":
                self._write(operation.b, run, cells, registers[operation.a])
            elif name == "const":
                registers[operation.dst] = torch.full(shape, operation.x, dtype=torch.float32)
            else:
                registers[operation.dst] = apply_operation(name, operation, registers)

    def _attend(self, body: Attend, run: GenerationBatch, cell: Cells) -> None:
        """Runs an Attend at one cell."""
        chosen = self.program.key_sets[int(body.keys.position(*cell))]
        buffers = [self.program.buffers[self.program.operands[number].buffer] for number in (body.key, body.value)]
        most = min([run.contexts[b.offset].shape[1] for b in buffers if b.where == CONTEXT], default=UNBOUNDED)
        runs = self.program.key_runs[chosen.run0 : chosen.run1]
        keys = torch.cat([_keys_of(r, cell, most) for r in runs] or [cell[0][:0]])
        query = self._read(body.query, run, cell).unflatten(-1, (body.heads, -1))[:, 0].double()  # [B, heads, depth]
        if not len(keys):
            self._write(body.out, run, cell, torch.zeros(len(query), 1, self.program.operands[body.out].length))
            return
        repeats, along = body.heads // body.groups, (torch.zeros_like(keys), keys, torch.zeros_like(keys))
        key, value = (
            self._read(number, run, along).unflatten(-1, (body.groups, -1)).repeat_interleave(repeats, 2).double()
            for number in (body.key, body.value)
        )
        products = torch.einsum("bhd,bshd->bhs", query, key).float()
        weights = self._keywise(body.operation0, body.operation1, products, run, cell, keys)
        if body.softmax:
            top = weights.amax(-1, keepdim=True)
            if body.least >= 0 and (top < (least := self.constants[body.least])).any():
                raise ValueError(
                    f"the greatest score of attention must be {float(least):g} or more, where keys are masked with a "
                    f"finite number, got {float(top.min()):g}; mask with float('-inf')"
                )
            weights = torch.softmax(weights.double(), -1).float()
        weights = self._keywise(body.weighting0, body.weighting1, weights, run, cell, keys)
        out = torch.einsum("bhs,bshc->bhc", weights.double(), value).float()
        self._write(body.out, run, cell, out.flatten(1)[:, None])

    def _keywise(
        self, first: int, last: int, values: Tensor, run: GenerationBatch, cell: Cells, keys: Tensor
    ) -> Tensor:
        """Runs a lane program over keys on ``[B, heads, keys]``; returns register 0."""
        registers = [values, torch.full_like(values, torch.nan)]
        for operation in self.program.operations[first:last]:
            name = NAMES[operation.opcode]
            if name == "load":
                given = self.program.score_operands[operation.a]
                operand, heads = self.program.operands[given.operand], torch.arange(values.shape[1])[:, None]
                channels = given.offset + given.row_stride * cell[0] + given.column_stride * cell[1]
                channels = channels + given.key_stride * keys + given.head_stride * heads
                here = self._buffer(operand, run)[:, self._slots(operand, run, cell)[0]]
                registers[operation.dst] = here[:, channels].expand_as(values)
            else:
                registers[operation.dst] = apply_operation(name, operation, registers)
        return registers[0]

    def _gather_multiply(self, body: Compute, run: GenerationBatch, cells: Cells) -> Tensor:
        count = body.parts * body.lanes
        sums = torch.zeros(run.state.shape[0], len(cells[0]), count, dtype=torch.float64)
        if body.accumulator >= 0:
            sums += self._read(body.accumulator, run, cells)
        elif body.bias >= 0:
            sums += self.constants[body.bias : body.bias + count]
        for segment in self.program.segments[body.segment0 : body.segment1]:
            matrix = self.matrices[body.weight]
            values = self._read(segment.operand, run, cells)
            if segment.kind == INDEX:
                index = values[..., 0].long()
                rows = segment.length
                if (index != values[..., 0]).any() or (index < 0).any() or (index >= rows).any():
                    raise ValueError(
                        f"an index must be a whole number in 0 .. {rows - 1}, got {values.min()} .. {values.max()}"
                    )
                sums += matrix[segment.row + index]
            else:
                sums += values.double() @ matrix[segment.row : segment.row + segment.length]
        return sums.float()

    def _buffer(self, operand: Operand, run: GenerationBatch) -> Tensor:
        """``[B or 1, positions, numbers of one]``, a view."""
        buffer = self.program.buffers[operand.buffer]
        if buffer.where == CONTEXT:
            return run.contexts[buffer.offset]
        arena = self.constants[None] if buffer.where == CONSTANT else run.state
        values = arena[:, buffer.offset : buffer.offset + buffer.positions * buffer.stride]
        return values.unflatten(1, (buffer.positions, buffer.stride))

    def _slots(self, operand: Operand, run: GenerationBatch, cells: Cells) -> Tensor:
        position = operand.map.position(*cells)
        if (position < 0).any():
            raise ValueError(f"an operand of buffer {operand.buffer} reads position {int(position.min())}")
        buffer = self.program.buffers[operand.buffer]
        if buffer.where != CONTEXT:
            return position % buffer.positions
        if (position >= (given := run.contexts[buffer.offset].shape[1])).any():
            raise ValueError(f"context {buffer.offset} has {given} positions; position {int(position.max())} is needed")
        return position

    def _read(self, number: int, run: GenerationBatch, cells: Cells) -> Tensor:
        """``[B, cells, length]``."""
        operand = self.program.operands[number]
        border = torch.zeros(operand.length, dtype=torch.float32)
        if operand.border >= 0:
            border = self.constants[operand.border : operand.border + operand.length]
        values = border.expand(run.state.shape[0], len(cells[0]), -1).clone()
        inside = operand.box.holds(*cells)
        slots = self._slots(operand, run, _chosen(cells, inside))
        rows = self._buffer(operand, run)[:, slots]
        values[:, inside] = read_rows(rows, self.program.buffers[operand.buffer])[..., _channels(operand)]
        return values

    def _write(self, number: int, run: GenerationBatch, cells: Cells, values: Tensor) -> None:
        operand = self.program.operands[number]
        inside = operand.box.holds(*cells)
        slots = self._slots(operand, run, _chosen(cells, inside))
        held, buffer = self._buffer(operand, run), self.program.buffers[operand.buffer]
        if buffer.format == FLOAT32:
            held[:, slots[:, None], _channels(operand)] = values[:, inside]
        else:
            held[:, slots] = rounded_rows(held[:, slots], operand.channel, values[:, inside], buffer)

    def _elements(self, event: Tensor, draw: Draw, run: GenerationBatch, cell: Cell) -> Tensor:
        """Returns the draw's elements of ``levels`` or ``known``: ``[B, channels]``, a view."""
        position = draw.map.position(*cell) - run.position0
        if not 0 <= position < event.shape[2]:
            held = f"{run.position0} .. {run.position0 + event.shape[2] - 1}"
            raise ValueError(f"levels holds the positions {held}; position {position + run.position0} is drawn")
        return event[:, draw.channel0 : draw.channel0 + draw.channels, position]

    def _draw(self, draw: Draw, run: GenerationBatch, cell: Cell) -> None:
        position = draw.map.position(*cell)
        cells = tuple(torch.tensor([place]) for place in cell)
        parameters = torch.cat([self._read(n, run, cells)[:, 0] for n in range(draw.parameter0, draw.parameter1)], -1)
        if run.parameters is not None:
            first = draw.channel0 * (parameters.shape[-1] // draw.channels)
            run.parameters[:, position - run.position0, first : first + parameters.shape[-1]] = parameters
        inputs = draw_position(self.head, run, parameters, position, draw.channel0, draw.channels)
        for channel, number in enumerate(range(draw.input0, draw.input1)):
            self._write(number, run, cells, inputs[:, None, channel, None])


def _keys_of(run: KeyRun, cell: Cells, most: int) -> Tensor:
    first, stop = (int(bound) for bound in run.bounds(*(int(place) for place in cell)))
    return torch.arange(first, max(first, min(stop, most)), run.step)


def _grid(domain: IterationDomain, rows: Rows, frames: Rows, columns: Rows | None = None) -> Cells:
    """Returns the cells of frames and rows, at the columns of the domain or at some."""
    columns = range(domain.column0, domain.column1) if columns is None else columns
    frame, row, column = torch.meshgrid(*(torch.tensor(list(axis)) for axis in (frames, rows, columns)), indexing="ij")
    return row.reshape(-1), column.reshape(-1), frame.reshape(-1)


def _chosen(cells: Cells, which: Tensor) -> Cells:
    row, column, frame = (axis[which] for axis in cells)
    return row, column, frame


def _channels(operand: Operand) -> Tensor:
    return operand.channel + operand.channel_stride * torch.arange(operand.length)


def _round_int8(matrix: Tensor) -> Tensor:
    scale = matrix.abs().amax(0, keepdim=True) / 127
    return torch.where(scale > 0, torch.round(matrix / scale), 0) * scale


_ROUND: dict[str, Callable[[Tensor], Tensor]] = {
    "float32": lambda matrix: matrix,
    "bfloat16": lambda matrix: matrix.bfloat16().float(),
    "int8": _round_int8,
}

_VALUES_AT_ONCE = 1 << 20
"""Register values of one sample that are computed at once."""
