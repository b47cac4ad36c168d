"""From the schedule to the step program: groups of fused runs become instructions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastgen.generate.ir.graph import Constant, Graph, Node, Piece, Recipe
from fastgen.generate.ir.instructions import (
    DENSE,
    INDEX,
    PIXEL,
    ROW,
    AccessMap,
    Compute,
    Draw,
    Instruction,
    Operation,
    Segment,
)
from fastgen.generate.ir.opcodes import OPCODE, REDUCTIONS
from fastgen.generate.ir.program import Program
from fastgen.generate.lower.attention import AttentionLowering
from fastgen.generate.lower.borders import border_beyond
from fastgen.generate.lower.fusion_groups import Group, Grouping, Task
from fastgen.generate.lower.hoisted_taps import SplitTerms, rows_at_once, split_terms
from fastgen.generate.lower.program_tables import Constants, ProgramTables
from fastgen.generate.orders import Order
from fastgen.generate.schedule.iteration_domain import Access, ScheduledDomain
from fastgen.generate.schedule.rings import ring_lengths
from fastgen.generate.schedule.scheduler import DrawSite, Placed


@dataclass
class Lowered:
    program: Program
    fill: Callable[[Constants], tuple[Tensor, Tensor]]
    """The float arenas (weights, constants) from the folded constants."""
    groups: list[Group]
    buffers: dict[Node, int]
    """Where the results of nodes are kept, of those that are."""


class Lowering(ProgramTables):
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
        super().__init__(graph, order, lookahead)
        self.placed, self.draws, self.event = placed, draws, event
        self.shift, self.lookahead = shift, lookahead
        self.grouping = Grouping(graph, placed, draws)
        self.attention = AttentionLowering(self, placed)

    def run(self) -> Lowered:
        self._make_buffers()
        emitted = [(group.order, made) for group in self.grouping.groups for made in self._emit(group)]
        emitted.sort(key=lambda pair: (pair[1].when, pair[1].level, pair[0]))
        self.program.instructions = [made for _, made in emitted]
        for draw in self.draws:
            self._emit_draw(draw)
        return Lowered(self.program, self.filler(), self.grouping.groups, self.buffers)

    # ---- buffers and operands

    def _make_buffers(self) -> None:
        lengths = ring_lengths(self.graph, self.order, self.placed, self.draws, self.event, self.lookahead)
        for node in self.graph.nodes:
            used = any(t.stored for n in range(len(node.runs)) for t in self.grouping.tasks[node, n])
            if (node.kind == "computed" and used) or node is self.event:
                self.buffers[node] = self.state_buffer(node.channels, lengths[node])

    # ---- instructions

    def _emit(self, group: Group) -> list[Instruction]:
        if group.attention is not None:
            return [self.attention.instruction(group)]
        contractions = group.contractions
        domain, lanes, parts = group.domain, group.lanes, len(contractions)
        emitted, accumulator = [], -1
        segments, weight, bias = [], -1, -1
        if contractions:
            split = split_terms(group, self.order, self.placed, self.event)
            recipes = [t.run.bias for t in contractions]
            if any(r is not None for r in recipes):
                columns = [t.run.columns for t in contractions]
                bias = self.constant(_joined_bias(recipes, columns), parts * lanes)
            if split.hoisted:
                hoisted, accumulator = self._emit_hoisted(group, split, bias)
                emitted.append(hoisted)
                bias = -1
            segments, weight = self._segments(contractions, split.waiting, domain)
        operations, registers = self._lane_program(group, parts)
        body = Compute(
            *self.append(segments, "segments"), weight, bias, accumulator, parts, lanes,
            *self.append(operations, "operations"), registers,
        )  # fmt: skip
        when = domain.when
        emitted.append(Instruction(when, self.level(group), group.loop_in(when), self.domain(domain, when), body))
        return emitted

    def _emit_hoisted(self, group: Group, split: SplitTerms, bias: int) -> tuple[Instruction, int]:
        """Emits the hoisted terms, of a whole row or a block of cells; returns the instruction and the accumulator."""
        domain, parts, lanes = group.domain, len(group.contractions), group.lanes
        box = domain.box
        width, times = box.column1 - box.column0, domain.schedule
        if split.when == ROW:
            frame = width * (box.row1 - box.row0) if box.frame1 - box.frame0 > 1 else 0
            buffer = self.state_buffer(parts * lanes, width * rows_at_once(domain, self.order.row_length))
            sums = AccessMap(width, 1, -box.column0 - width * box.row0 - frame * box.frame0, frame)
        else:
            buffer = self.state_buffer(parts * lanes, -(-self.lookahead // times.column_step) + split.block - 1)
            sums = AccessMap(0, 1, -box.column0)
        segments, weight = self._segments(group.contractions, split.hoisted, domain)
        operations = []
        for part in range(parts):
            operand = self.operand(buffer, Access(sums, part * lanes, box), 1, lanes, domain)
            operations.append(Operation(OPCODE["store"], 0, part, operand))
        level = 0 if split.when == ROW else self.level(group) - 1
        task = group.contractions[0]
        for n in split.hoisted if split.when == ROW else ():
            piece = task.run.terms[n].piece
            if piece.node.kind == "computed":
                sources = self.grouping.computing(piece)
                level = max([level, *[s.group.level + 1 for s in sources if s.domain.when == ROW]])
        body = Compute(
            *self.append(segments, "segments"), weight, bias, -1, parts, lanes,
            *self.append(operations, "operations"), parts, split.block,
        )  # fmt: skip
        loop = group.loop_in(split.when)
        instruction = Instruction(split.when, level, loop, self.domain(domain, split.when), body)
        return instruction, self.operand(buffer, Access(sums, 0, box), 1, parts * lanes, domain)

    def _segments(
        self, contractions: list[Task], numbers: list[int], domain: ScheduledDomain
    ) -> tuple[list[Segment], int]:
        """Segments of the chosen terms, neighbouring channel runs merged, and the number of their matrix, or -1."""
        task = contractions[0]
        merged: list[list] = []  # [term, access, length, rows]
        for n in numbers:
            term, access = task.run.terms[n], task.domain.operands[n]
            piece, last = term.piece, merged[-1] if merged else None
            if (
                last is not None
                and not term.index
                and not last[0].index
                and last[0].piece.node is piece.node
                and piece.stride == last[0].piece.stride == 1
                and last[1].slot + last[2] == access.slot
                and (last[1].map, last[1].box) == (access.map, access.box)
            ):
                last[2] += piece.length
                last[3] = np.concatenate([last[3], term.weight_rows])
            else:
                merged.append([term, access, piece.length, term.weight_rows])
        if not merged:
            return [], -1
        segments, chosen, row = [], [], 0
        borders = self._borders(merged, domain)
        for number, (term, access, length, rows) in enumerate(merged):
            if number in borders.values():
                continue
            buffer = self.buffer(term.piece.node)
            count = 1 if term.index else length
            operand = self.operand(buffer, access, term.piece.stride, count, domain)
            if number in borders:
                constant, outside, *_ = merged[borders[number]]
                values = border_beyond(domain, (term.piece, access), (constant.piece, outside), self.graph.constants)
                self.program.operands[operand].border = self.constant(values, length)
            if term.index and access.box != domain.box:  # outside the box stands the number of a row of zeros
                self.program.operands[operand].border = self.constant(Constant.literal(float(len(rows))).recipe, 1)
                rows = np.append(rows, -1)
            segments.append(Segment(operand, INDEX if term.index else DENSE, row, len(rows)))
            row += len(rows)
            chosen.append(rows)
        rows = np.concatenate(chosen)
        return segments, self.weight([(t.run.matrix, rows, t.run.columns) for t in contractions])

    def _borders(self, merged: list[list], domain: ScheduledDomain) -> dict[int, int]:
        """Returns for terms the number of the constant term that meets the same weights at all other cells."""
        found: dict[int, int] = {}
        dense = [number for number, (term, *_) in enumerate(merged) if not term.index]
        constants = [number for number in dense if merged[number][0].piece.node.kind == "constant"]
        for number in (number for number in dense if number not in constants):
            term, access, length, rows = merged[number]
            for other in constants:
                constant, outside, count, same = merged[other]
                alike = term.piece.length == length == count and np.array_equal(rows, same)
                reads = (term.piece, access), (constant.piece, outside)
                if alike and border_beyond(domain, *reads, self.graph.constants) is not None:
                    found[number] = other
        return found

    def _lane_program(self, group: Group, parts: int) -> tuple[list[Operation], int]:
        operations: list[Operation] = []
        for number, task in enumerate(group.contractions):
            task.register = number
        free = parts

        def load(piece: Piece, access: Access, domain: ScheduledDomain) -> int:
            nonlocal free
            operand = self.operand(self.buffer(piece.node), access, piece.stride, group.lanes, domain)
            operations.append(Operation(OPCODE["load"], free, operand))
            free += 1
            return free - 1

        for task in group.tasks:
            run = task.run
            if run.terms is None:
                accesses = iter(task.domain.operands)
                arguments = []
                for pieces in run.operands:
                    value = None
                    for piece in pieces:
                        access = next(accesses)
                        if access is None:
                            continue
                        source = self.grouping.register_source(task, piece, access)
                        register = source.register if source is not None else load(piece, access, task.domain)
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
                access = Access(task.domain.target, run.slot, task.domain.box)
                operand = self.operand(self.buffers[task.node], access, 1, run.length, task.domain)
                operations.append(Operation(OPCODE["store"], 0, task.register, operand))
        return operations, free

    def _emit_draw(self, draw: DrawSite) -> None:
        program, domain = self.program, draw.domain
        first = len(program.operands)
        for piece, access in zip(draw.pieces, domain.operands, strict=True):
            self.operand(self.buffer(piece.node), access, piece.stride, piece.length, domain)
        last = len(program.operands)
        target = domain.target
        for channel in range(draw.channels):
            if self.order.name == "features":
                access = Access(AccessMap(0, 0, 0), int(draw.positions[0]), domain.box)
            else:
                written = replace(target, offset=target.offset + self.shift)
                access = Access(written, draw.channel0 + channel, domain.box)
            self.operand(self.buffers[self.event], access, 1, 1, domain)
        body = Draw(first, last, replace(target), draw.channel0, draw.channels, last, len(program.operands))
        program.instructions.append(Instruction(PIXEL, 0, 0, self.domain(domain, PIXEL), body))


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
