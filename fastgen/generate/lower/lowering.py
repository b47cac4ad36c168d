"""From the schedule to the step program: groups of fused runs become codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastgen.generate.ir.graph import REDUCTIONS, Constant, Graph, Node, Piece, Recipe
from fastgen.generate.ir.program import (
    CONSTANT,
    CONTEXT,
    DENSE,
    INDEX,
    OPCODE,
    PIXEL,
    ROW,
    STATE,
    Buffer,
    Code,
    Draw,
    Operand,
    Operation,
    Program,
    Segment,
    Weight,
)
from fastgen.generate.lower.fusion_groups import Group, Grouping, Task
from fastgen.generate.lower.hoisted_taps import EarlyTerms, early_terms
from fastgen.generate.orders import Order
from fastgen.generate.schedule.lattice import Address, Lattice
from fastgen.generate.schedule.rings import ring_lengths
from fastgen.generate.schedule.scheduler import DrawSite, Placed

Constants = dict[str, Tensor]


@dataclass
class Lowered:
    program: Program
    fill: Callable[[Constants], tuple[Tensor, Tensor]]
    """The float arenas (weights, constants) from the folded constants."""
    groups: list[Group]
    buffers: dict[Node, int]
    """Where the results of nodes are kept, of those that are."""


class Lowering:
    def __init__(
        self,
        graph: Graph,
        order: Order,
        placed: dict[Node, Placed],
        draws: list[DrawSite],
        event: Node,
        shift: int,
        lookahead: int,
    ):
        self.graph, self.order, self.placed, self.draws, self.event = graph, order, placed, draws, event
        self.shift, self.lookahead = shift, lookahead
        self.grouping = Grouping(graph, placed, draws)
        self.program = Program(order.length, order.row_length, 0, lookahead)
        self.weight_parts: list[tuple[int, list[tuple[Recipe, np.ndarray, np.ndarray]]]] = []
        self.constant_parts: list[tuple[int, Recipe, np.ndarray | None]] = []
        self.weights_size = self.constants_size = 0
        self.buffers: dict[Node, int] = {}
        self._known_weights: dict[object, int] = {}

    def run(self) -> Lowered:
        self._make_buffers()
        codes = []
        for group in self.grouping.groups:
            codes += self._emit(group)
        codes.sort(key=lambda c: (c[0].kind, c[0].level, c[1]))
        self.program.codes = [code for code, _ in codes]
        for draw in self.draws:
            self._emit_draw(draw)
        return Lowered(self.program, self._filler(), self.grouping.groups, self.buffers)

    # ---- buffers and operands

    def _make_buffers(self) -> None:
        lengths = ring_lengths(self.graph, self.order, self.placed, self.draws, self.event, self.lookahead)
        for node in self.graph.nodes:
            used = any(t.stored for n in range(len(node.runs)) for t in self.grouping.tasks[node, n])
            if (node.kind == "computed" and used) or node is self.event:
                self.buffers[node] = self._state_buffer(node.channels, lengths[node])

    def _state_buffer(self, channels: int, positions: int) -> int:
        self.program.buffers.append(Buffer(STATE, channels, positions, self.program.state_size))
        self.program.state_size += -(-channels * positions // 16) * 16
        return len(self.program.buffers) - 1

    def _buffer(self, node: Node) -> int:
        if node not in self.buffers:
            if node.kind == "constant":
                made = Buffer(
                    CONSTANT, node.channels, node.rows, self._constant(node.values, node.rows * node.channels)
                )
            else:
                made = Buffer(CONTEXT, node.channels, 0, node.context)
            self.program.buffers.append(made)
            self.buffers[node] = len(self.program.buffers) - 1
        return self.buffers[node]

    def _constant(self, recipe: Recipe, size: int, columns: np.ndarray | None = None) -> int:
        offset = self.constants_size
        self.constant_parts.append((offset, recipe, columns))
        self.constants_size += -(-size // 16) * 16
        return offset

    def _operand(self, buffer: int, address: Address, channel: int, stride: int, length: int, lattice: Lattice) -> int:
        q0, q1, w0, w1 = address.box
        whole = lattice.box
        bounds = [0, 1 << 40, 0, 1 << 40]
        if q0 > whole[0]:
            bounds[0] = q0
        if q1 < whole[1]:
            bounds[1] = q1
        if w0 > whole[2]:
            bounds[2] = w0
        if w1 < whole[3]:
            bounds[3] = w1
        made = Operand(buffer, channel, stride, length, address.a, address.b, address.c, *bounds)
        self.program.operands.append(made)
        return len(self.program.operands) - 1

    # ---- codes

    def _emit(self, group: Group) -> list[tuple[Code, int]]:
        contractions = group.contractions
        lattice, lanes, parts = group.lattice, group.lanes, len(contractions)
        codes, accumulator = [], -1
        segments = weight = None
        bias = -1
        if contractions:
            split = early_terms(group, self.order, self.placed, self.event)
            recipes = [t.run.bias for t in contractions]
            if any(r is not None for r in recipes):
                columns = [t.run.columns for t in contractions]
                bias = self._constant(_joined_bias(recipes, columns), parts * lanes)
            if split.early:
                code, accumulator = self._emit_partial(group, split, bias)
                codes.append((code, group.order))
                bias = -1
            segments, weight = self._segments(contractions, split.late, lattice)
        operations, registers = self._lane_program(group, parts)
        code = self._code(
            lattice,
            lattice.kind,
            self._level(group),
            segments,
            weight,
            bias,
            accumulator,
            parts,
            lanes,
            operations,
            registers,
        )
        codes.append((code, group.order))
        return codes

    def _level(self, group: Group) -> int:
        """In a sequence, with room before every level for the sums of its early terms."""
        return (
            group.level
            if group.lattice.kind != PIXEL or self.order.length > self.order.row_length
            else 2 * group.level + 1
        )

    def _code(
        self, lattice, kind, level, segments, weight, bias, accumulator, parts, lanes, operations, registers
    ) -> Code:
        program = self.program
        segment0, operation0 = len(program.segments), len(program.operations)
        program.segments += segments or []
        program.operations += operations
        row_stride, column_stride, delay = lattice.row_step, lattice.column_step, lattice.delay
        if lattice.kind == PIXEL and kind == ROW:
            first = lattice.column_step * lattice.box[2] + lattice.delay
            row_stride, column_stride, delay = (
                lattice.row_step // self.order.row_length,
                0,
                first // self.order.row_length,
            )
        elif kind == PIXEL:
            row_stride = row_stride // self.order.row_length
        return Code(
            kind, level, max(1, row_stride), max(1, column_stride), delay, *lattice.box,
            segment0, len(program.segments), -1 if weight is None else weight, bias, accumulator, parts, lanes,
            operation0, len(program.operations), registers,
        )  # fmt: skip

    def _emit_partial(self, group: Group, split: EarlyTerms, bias: int) -> tuple[Code, int]:
        """The early terms, for a whole row or for some cells at once: the code and the accumulator."""
        lattice, parts, lanes = group.lattice, len(group.contractions), group.lanes
        q0, _, w0, w1 = lattice.box
        width = w1 - w0
        if split.kind == ROW:
            first = lattice.column_step * w0 + lattice.delay
            wraps = first % self.order.row_length + lattice.column_step * (width - 1) >= self.order.row_length
            buffer = self._state_buffer(parts * lanes, width * (2 if wraps else 1))
            address = Address(width, 1, -w0 - width * q0, 0, lattice.box)
        else:
            buffer = self._state_buffer(parts * lanes, -(-self.lookahead // lattice.column_step) + split.together - 1)
            address = Address(0, 1, -w0, 0, lattice.box)
        segments, weight = self._segments(group.contractions, split.early, lattice)
        operations = []
        for part in range(parts):
            operand = self._operand(buffer, address, part * lanes, 1, lanes, lattice)
            operations.append(Operation(OPCODE["store"], 0, part, operand))
        level = 0 if split.kind == ROW else self._level(group) - 1
        task = group.contractions[0]
        for n in split.early if split.kind == ROW else ():
            piece = task.run.terms[n].piece
            if piece.node.kind == "computed":
                level = max([level, *[s.group.level + 1 for s in self.grouping.of(piece) if s.lattice.kind == ROW]])
        code = self._code(lattice, split.kind, level, segments, weight, bias, -1, parts, lanes, operations, parts)
        code.together = split.together
        return code, self._operand(buffer, address, 0, 1, parts * lanes, lattice)

    def _segments(
        self, contractions: list[Task], numbers: list[int], lattice: Lattice
    ) -> tuple[list[Segment], int | None]:
        """Segments of the chosen terms (neighbouring channel runs merged) and the weight matrix that they meet."""
        task = contractions[0]
        merged: list[list] = []  # [term, address, length, rows]
        for n in numbers:
            term, address = task.run.terms[n], task.lattice.operands[n]
            piece, last = term.piece, merged[-1] if merged else None
            if (
                last is not None
                and not term.index
                and not last[0].index
                and last[0].piece.node is piece.node
                and piece.stride == last[0].piece.stride == 1
                and last[1].slot + last[2] == address.slot
                and (last[1].a, last[1].b, last[1].c, last[1].box) == (address.a, address.b, address.c, address.box)
            ):
                last[2] += piece.length
                last[3] = np.concatenate([last[3], term.weight_rows])
            else:
                merged.append([term, address, piece.length, term.weight_rows])
        if not merged:
            return [], None
        segments, chosen, row = [], [], 0
        for term, address, length, rows in merged:
            buffer = self._buffer(term.piece.node)
            count = 1 if term.index else length
            operand = self._operand(buffer, address, address.slot, term.piece.stride, count, lattice)
            if term.index and address.box != lattice.box:  # outside the box stands the number of a row of zeros
                self.program.operands[operand].border = self._constant(Constant.literal(float(len(rows))).recipe, 1)
                rows = np.append(rows, -1)
            segments.append(Segment(operand, INDEX if term.index else DENSE, row, len(rows)))
            row += len(rows)
            chosen.append(rows)
        rows = np.concatenate(chosen)
        return segments, self._weight([(t.run.matrix, rows, t.run.columns) for t in contractions])

    def _weight(self, parts: list[tuple[Recipe, np.ndarray, np.ndarray]]) -> int:
        key = tuple(
            (r.sources, id(r) if not r.sources else None, rows.tobytes(), columns.tobytes())
            for r, rows, columns in parts
        )
        shared = self._known_weights.get(key)
        if shared is not None and self._always_equal(parts, self.weight_parts[shared][1]):
            return shared
        rows, columns = len(parts[0][1]), sum(len(c) for _, _, c in parts)
        self.program.weight_table.append(Weight(self.weights_size, rows, columns))
        self.weight_parts.append((self.weights_size, parts))
        self.weights_size += rows * columns
        self._known_weights[key] = len(self.program.weight_table) - 1
        return len(self.program.weight_table) - 1

    def _always_equal(self, first: list[tuple], second: list[tuple]) -> bool:
        """Whether two ways to cut a block from the same constants are one, whatever the constants' values."""
        generator = torch.Generator().manual_seed(0)
        probes = {
            s: torch.rand(self.graph.constants[s].shape, generator=generator, dtype=torch.float64) + 0.5
            for recipe, _, _ in (*first, *second)
            for s in recipe.sources
        }
        return torch.equal(_weight_block(first, probes), _weight_block(second, probes))

    def _lane_program(self, group: Group, parts: int) -> tuple[list[Operation], int]:
        operations: list[Operation] = []
        for number, task in enumerate(group.contractions):
            task.register = number
        free = parts

        def load(piece: Piece, address: Address, lattice: Lattice) -> int:
            nonlocal free
            operand = self._operand(self._buffer(piece.node), address, address.slot, piece.stride, group.lanes, lattice)
            operations.append(Operation(OPCODE["load"], free, operand))
            free += 1
            return free - 1

        for task in group.tasks:
            run = task.run
            if run.terms is None:
                addresses = iter(task.lattice.operands)
                arguments = []
                for pieces in run.operands:
                    value = None
                    for piece in pieces:
                        address = next(addresses)
                        if address is None:
                            continue
                        source = self.grouping.register_source(task, piece, address)
                        register = source.register if source is not None else load(piece, address, task.lattice)
                        if value is not None:
                            operations.append(Operation(OPCODE["add"], free, value, register))
                            register, free = free, free + 1
                        value = register
                    if value is None:
                        operations.append(Operation(OPCODE["const"], free))
                        value, free = free, free + 1
                    arguments.append(value)
                if run.opcode in REDUCTIONS:
                    arguments.append(int(run.x))
                operations.append(Operation(OPCODE[run.opcode], free, *arguments, x=run.x, y=run.y))
                task.register, free = free, free + 1
            if task.stored:
                target = task.lattice.target
                address = Address(target.a, target.b, target.c, run.slot, task.lattice.box)
                operand = self._operand(self.buffers[task.node], address, run.slot, 1, run.length, task.lattice)
                operations.append(Operation(OPCODE["store"], 0, task.register, operand))
        return operations, free

    def _emit_draw(self, draw: DrawSite) -> None:
        program, lattice = self.program, draw.lattice
        first = len(program.operands)
        for piece, address in zip(draw.pieces, lattice.operands, strict=True):
            self._operand(self._buffer(piece.node), address, address.slot, piece.stride, piece.length, lattice)
        last = len(program.operands)
        target = lattice.target
        for channel in range(draw.channels):
            if self.order.name == "features":
                address = Address(0, 0, 0, int(draw.positions[0]), lattice.box)
            else:
                address = Address(target.a, target.b, target.c + self.shift, draw.channel0 + channel, lattice.box)
            self._operand(self.buffers[self.event], address, address.slot, 1, 1, lattice)
        row_stride = lattice.row_step // self.order.row_length
        when = row_stride, lattice.column_step, lattice.delay, *lattice.box
        where = target.a, target.b, target.c, draw.channel0, draw.channels
        program.draws.append(Draw(*when, first, last, *where, last, len(program.operands)))

    def _filler(self) -> Callable[[Constants], tuple[Tensor, Tensor]]:
        weights_size, constants_size = self.weights_size, self.constants_size
        weight_parts, constant_parts, table = self.weight_parts, self.constant_parts, self.program.weight_table

        def fill(constants: Constants) -> tuple[Tensor, Tensor]:
            weights, values = (torch.zeros(n, dtype=torch.float32) for n in (weights_size, constants_size))
            for (offset, parts), record in zip(weight_parts, table, strict=True):
                block = _weight_block(parts, constants)
                weights[offset : offset + record.rows * record.columns] = block.reshape(-1)
            for offset, recipe, columns in constant_parts:
                flat = recipe(constants).reshape(-1)
                flat = flat if columns is None else flat[torch.from_numpy(columns)]
                values[offset : offset + flat.numel()] = flat
            return weights, values

        return fill


def _weight_block(parts: list[tuple[Recipe, np.ndarray, np.ndarray]], constants: Constants) -> Tensor:
    """The matrices' chosen rows and columns, side by side; row -1 is a row of zeros."""
    blocks = []
    for recipe, rows, columns in parts:
        block = recipe(constants)[torch.from_numpy(rows)][:, torch.from_numpy(columns)]
        blocks.append(torch.where(torch.from_numpy(rows >= 0)[:, None], block, 0))
    return torch.cat(blocks, 1)


def _joined_bias(recipes: list[Recipe | None], columns: list[np.ndarray]) -> Recipe:
    counts = [0 if r is None else len(r.sources) for r in recipes]

    def function(*sources: Tensor) -> Tensor:
        parts, start = [], 0
        for recipe, chosen, count in zip(recipes, columns, counts, strict=True):
            if recipe is None:
                parts.append(torch.zeros(len(chosen), dtype=torch.float32))
            else:
                parts.append(recipe.function(*sources[start : start + count]).float()[torch.from_numpy(chosen)])
            start += count
        return torch.cat(parts)

    return Recipe(tuple(s for r in recipes if r is not None for s in r.sources), function)
