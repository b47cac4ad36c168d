"""Attention as an instruction."""

from __future__ import annotations

import numpy as np

from fastgen.generate.errors import CompileError
from fastgen.generate.ir.graph import Constant
from fastgen.generate.ir.instructions import Attend, Box, Instruction, Operand, Operation, ScoreOperand
from fastgen.generate.ir.opcodes import OPCODE
from fastgen.generate.ir.records import KeyRows, Node, ScoreStep
from fastgen.generate.lower.fusion_groups import Group, Task
from fastgen.generate.lower.key_sets import KeySets
from fastgen.generate.lower.program_tables import ProgramTables
from fastgen.generate.schedule.affine_fit import affine
from fastgen.generate.schedule.iteration_domain import Access, Cells
from fastgen.generate.schedule.scheduler import Placed


class AttentionLowering:
    """Makes the instructions of a program that attend."""

    def __init__(self, tables: ProgramTables, placed: dict[Node, Placed]) -> None:
        self.tables, self.placed = tables, placed
        self.key_sets = KeySets(tables)

    def instruction(self, group: Group) -> Instruction:
        task = group.tasks[0]
        attention, domain, tables = task.run.attention, task.domain, self.tables
        steps = [step for step in (*attention.scores, *attention.weighting) if step.piece is not None]
        accesses = dict(zip(steps, domain.operands[1:], strict=True))
        queries = tables.operand(
            tables.buffer(attention.queries.node), domain.operands[0], 1, attention.queries.length, domain
        )
        key, value = (self._keys(keys, attention.seen) for keys in (attention.keys, attention.values))
        written = Access(domain.target, 0, domain.box)
        out = tables.operand(tables.buffers[task.node], written, 1, task.node.channels, domain)
        rows = self.placed[task.node].row[domain.positions] % len(attention.seen)
        sets = self.key_sets.of(attention.seen, domain.cells, rows, domain.target)
        scores = self._program(attention.scores, accesses, task)
        weighting = self._program(attention.weighting, accesses, task)
        least = -1
        if attention.least is not None:
            least = tables.constant(Constant.literal(attention.least).recipe, 1)
        body = Attend(
            queries, key, value, out, attention.heads, attention.groups, sets, *scores, *weighting, 2,
            int(attention.softmax), least,
        )  # fmt: skip
        when = domain.when
        return Instruction(when, tables.level(group), group.loop_in(when), tables.domain(domain, when), body)

    def _keys(self, keys: KeyRows, seen: np.ndarray) -> int:
        """Returns the operand of the keys (or values): the one of key s at the cell (0, s)."""
        position = self.placed[keys.node].position[keys.rows[0]]
        read = np.flatnonzero(seen.any(0))
        read = read if len(read) else np.zeros(1, np.int64)
        found = affine(Cells.of_frame(np.zeros_like(read), read), position[read].astype(np.int64))
        if found is None:
            raise CompileError(f"the keys of attention do not lie regularly in {keys.node.name}, {keys.node.where}")
        operands = self.tables.program.operands
        operands.append(Operand(self.tables.buffer(keys.node), keys.slot, 1, keys.length, found, Box()))
        return len(operands) - 1

    def _program(self, steps: list[ScoreStep], accesses: dict[ScoreStep, Access | None], task: Task) -> tuple[int, int]:
        """Returns the range of the operations that work on register 0, with register 1 for what they read."""
        operations = []
        for step in steps:
            arguments = [0]
            if step.piece is not None:
                number = self._score_operand(step, accesses[step], task)
                operations.append(Operation(OPCODE["load"], 1, number))
                arguments = [1, 0] if step.swapped else [0, 1]
            operations.append(Operation(OPCODE[step.opcode], 0, *arguments, x=step.x, y=step.y))
        return self.tables.append(operations, "operations")

    def _score_operand(self, step: ScoreStep, access: Access | None, task: Task) -> int:
        domain, target = task.domain, task.domain.target
        if access is None:
            raise CompileError(f"attention reads nothing of {step.piece.node.name}, {step.piece.node.where}")
        offset = step.offset + step.query_stride * target.offset
        operand = self.tables.operand(self.tables.buffer(step.piece.node), access, 1, step.piece.length, domain)
        rows, columns = step.query_stride * target.row_stride, step.query_stride * target.column_stride
        record = ScoreOperand(operand, offset, rows, columns, step.key_stride, step.head_stride)
        self.tables.program.score_operands.append(record)
        return len(self.tables.program.score_operands) - 1
