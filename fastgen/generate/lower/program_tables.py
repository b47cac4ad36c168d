"""The tables of a step program while they are filled: buffers, operands, constants, weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastgen.generate.ir.graph import Graph, Node, Recipe
from fastgen.generate.ir.instructions import (
    CONSTANT,
    CONTEXT,
    PIXEL,
    ROW,
    STATE,
    Box,
    Buffer,
    IterationDomain,
    Operand,
    Weight,
)
from fastgen.generate.ir.program import Program
from fastgen.generate.lower.fusion_groups import Group
from fastgen.generate.orders import Order
from fastgen.generate.schedule.iteration_domain import Access, ScheduledDomain

Constants = dict[str, Tensor]


class ProgramTables:
    """A program that is being made."""

    def __init__(self, graph: Graph, order: Order, lookahead: int) -> None:
        self.graph, self.order = graph, order
        self.program = Program(order.length, order.row_length, 0, lookahead)
        self.weight_parts: list[tuple[int, list[tuple[Recipe, np.ndarray, np.ndarray]]]] = []
        self.constant_parts: list[tuple[int, Recipe, np.ndarray | None]] = []
        self.weights_size = self.constants_size = 0
        self.buffers: dict[Node, int] = {}
        self._known_weights: dict[object, int] = {}

    def state_buffer(self, channels: int, positions: int) -> int:
        self.program.buffers.append(Buffer(STATE, channels, positions, self.program.state_size))
        self.program.state_size += -(-channels * positions // 16) * 16
        return len(self.program.buffers) - 1

    def buffer(self, node: Node) -> int:
        if node not in self.buffers:
            if node.kind == "constant":
                made = Buffer(CONSTANT, node.channels, node.rows, self.constant(node.values, node.rows * node.channels))
            else:
                made = Buffer(CONTEXT, node.channels, 0, node.context)
            self.program.buffers.append(made)
            self.buffers[node] = len(self.program.buffers) - 1
        return self.buffers[node]

    def constant(self, recipe: Recipe, size: int, columns: np.ndarray | None = None) -> int:
        offset = self.constants_size
        self.constant_parts.append((offset, recipe, columns))
        self.constants_size += -(-size // 16) * 16
        return offset

    def operand(self, buffer: int, access: Access, stride: int, length: int, domain: ScheduledDomain) -> int:
        """Makes a new operand; its box has only the ends that lie within the domain's."""
        box, inside, whole = Box(), access.box, domain.box
        if inside.row0 > whole.row0:
            box.row0 = inside.row0
        if inside.row1 < whole.row1:
            box.row1 = inside.row1
        if inside.column0 > whole.column0:
            box.column0 = inside.column0
        if inside.column1 < whole.column1:
            box.column1 = inside.column1
        if inside.frame0 > whole.frame0:
            box.frame0 = inside.frame0
        if inside.frame1 < whole.frame1:
            box.frame1 = inside.frame1
        self.program.operands.append(Operand(buffer, access.slot, stride, length, replace(access.map), box))
        return len(self.program.operands) - 1

    def append(self, records: list, name: str) -> tuple[int, int]:
        """Appends records to a table of the program, and returns their range."""
        table = getattr(self.program, name)
        table += records
        return len(table) - len(records), len(table)

    def level(self, group: Group) -> int:
        """Returns the level; a sequence has room before every level for the sums of its hoisted terms."""
        return (
            group.level
            if group.domain.when != PIXEL or self.order.length > self.order.row_length
            else 2 * group.level + 1
        )

    def domain(self, domain: ScheduledDomain, when: int) -> IterationDomain:
        """Returns the domain with its schedule in rows and columns of steps; ROW for whole rows or frames of cells."""
        box, row_length = domain.box, self.order.row_length
        row_stride, column_stride, delay, frame_stride = domain.schedule
        if domain.when == PIXEL and when == ROW:
            first = column_stride * box.column0 + delay
            row_stride, column_stride, delay = row_stride // row_length, 0, first // row_length
        elif when == PIXEL:
            row_stride = row_stride // row_length
        if domain.when == PIXEL:
            frame_stride = frame_stride // row_length
        if domain.when != ROW:
            row_stride = max(1, row_stride)
        ends = box.row0, box.row1, box.column0, box.column1
        return IterationDomain(row_stride, max(1, column_stride), delay, *ends, frame_stride, box.frame0, box.frame1)

    def weight(self, parts: list[tuple[Recipe, np.ndarray, np.ndarray]]) -> int:
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

    def filler(self) -> Callable[[Constants], tuple[Tensor, Tensor]]:
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
    """Returns the matrices' chosen rows and columns, side by side; row -1 is a row of zeros."""
    blocks = []
    for recipe, rows, columns in parts:
        block = recipe(constants)[torch.from_numpy(rows)][:, torch.from_numpy(columns)]
        blocks.append(torch.where(torch.from_numpy(rows >= 0)[:, None], block, 0))
    return torch.cat(blocks, 1)
