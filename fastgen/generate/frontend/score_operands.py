"""What is added to scores, or multiplies them: a number for every query, key and head, found by strides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastgen.generate.errors import UnsupportedOperator
from fastgen.generate.frontend.scores import Step
from fastgen.generate.ir.graph import Constant, Graph, Value, derive
from fastgen.generate.ir.records import Node, Piece, ScoreStep


class ScoreOperands:
    """Makes the steps of one attention node; operands have a shape that broadcasts to [N, heads, blocks, T, S]."""

    def __init__(self, graph: Graph, sizes: Sequence[int], seen: np.ndarray) -> None:
        self.graph, self.seen = graph, seen
        self.batch, self.heads, self.blocks, self.count = sizes
        self.rows = self.batch * self.blocks * self.count

    def step(self, step: Step) -> ScoreStep:
        if step.operand is None:
            return ScoreStep(step.opcode, step.x, step.y)
        if self.blocks > 1 and any(n > 1 for n in self._sizes(step.operand)[2:]):
            raise UnsupportedOperator(self.graph, "attention in blocks with a bias for every key")
        if isinstance(step.operand, Value):
            return self._computed(step, step.operand.ids)
        return self._constant(step, step.operand)

    def _sizes(self, operand: Value | Constant) -> list[int]:
        shape = list(operand.ids.shape if isinstance(operand, Value) else operand.tensor.shape)
        return [1] * (5 - len(shape)) + shape

    # ---- constants

    def _constant(self, step: Step, operand: Constant) -> ScoreStep:
        sizes = self._sizes(operand)
        tensor = operand.tensor.reshape(sizes)
        if sizes[0] > 1:
            first = tensor[:1].expand_as(tensor)
            if not torch.equal(first, tensor):
                raise UnsupportedOperator(self.graph, "attention with a bias that differs between samples")
            self.graph.assume(operand.recipe, lambda t: torch.equal(t[:1].expand_as(t), t))
        heads, queries, keys = _distinct(tensor[0, :, 0], operand.recipe.sources)

        def table(t: Tensor) -> Tensor:
            t = t.reshape(sizes)[0, : (None if heads else 1), 0]
            return t[:, : (None if queries else 1), : (None if keys else 1)]

        strides = [0, 0, 0]
        chosen = derive(table, operand)
        offset = 0
        if queries and keys and (apart := self._by_distance(chosen.tensor)) is not None:
            chosen, offset = self._diagonals(chosen, apart), self.count - 1
            width = chosen.tensor.shape[-1]
            strides = [-1, 1, width if heads else 0]
        else:
            _, height, width = chosen.tensor.shape
            strides = [width if queries else 0, 1 if keys else 0, height * width if heads else 0]
        flat = derive(lambda t: t.reshape(1, -1), chosen)
        node = self.graph.constant_node((1,), flat.tensor.shape[1], flat.recipe)
        piece = _whole(node, np.zeros(self.rows, np.int32))
        return ScoreStep(step.opcode, step.x, step.y, piece, offset, *strides, swapped=step.swapped)

    def _by_distance(self, table: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns a query and a key for every distance between them, where what is seen depends on that only."""
        queries, keys = np.nonzero(self.seen)
        if not len(queries):
            return None
        distance = keys - queries + self.count - 1
        at = np.zeros((2, self.count + self.seen.shape[1] - 1), np.int64)
        at[0, distance], at[1, distance] = queries, keys
        found = table[:, at[0], at[1]][:, distance]
        if not torch.equal(found, table[:, queries, keys]):
            return None
        return torch.from_numpy(at[0]), torch.from_numpy(at[1])

    def _diagonals(self, table: Constant, apart: tuple[Tensor, Tensor]) -> Constant:
        queries, keys = apart
        self.graph.assume(table.recipe, lambda t: self._by_distance(t) is not None)
        return derive(lambda t: t[:, queries, keys], table)

    # ---- what is computed

    def _computed(self, step: Step, ids: Tensor) -> ScoreStep:
        """Finds the strides at which the ids of what the queries see advance in the rows of one node."""
        graph, seen = self.graph, self.seen
        full = ids.reshape(self._sizes(Value(ids))).expand(
            self.batch, self.heads, self.blocks, self.count, seen.shape[1]
        )
        table = full[:, :, 0].numpy()  # [N, heads, T, S]
        queries, keys = np.nonzero(seen)
        told = table[:, :, queries, keys]
        node, told = self._one_node(told)
        row, slot = np.divmod(told - node.base, node.channels + 1)
        refused = UnsupportedOperator(graph, "attention with a computed bias that does not lie regularly")
        if (told < node.base).any() or (row != row[:, :1]).any():
            raise refused
        rows = np.zeros((self.batch, self.count), np.int32)
        rows[:, queries] = row[:, 0]
        if (rows[:, queries] != row[:, 0]).any():
            raise refused
        matrix = np.stack([np.ones_like(queries), queries, keys], 1).astype(float)
        found = np.linalg.lstsq(matrix, slot[0, 0].astype(float), rcond=None)[0]
        first, query_stride, key_stride = (round(n) for n in found.tolist())
        head_stride = int(slot[0, 1, 0] - slot[0, 0, 0]) if self.heads > 1 else 0
        heads = np.arange(self.heads)[None, :, None]
        if (slot != first + query_stride * queries + key_stride * keys + head_stride * heads).any():
            raise refused
        piece = _whole(node, rows.reshape(-1))
        return ScoreStep(
            step.opcode, step.x, step.y, piece, first, query_stride, key_stride, head_stride, swapped=step.swapped
        )

    def _one_node(self, told: np.ndarray) -> tuple[Node, np.ndarray]:
        """Returns the node of some ids ``[N, heads, ...]``; where heads have nodes of their own, a joint one."""
        graph = self.graph
        nodes = [graph.nodes[int(np.searchsorted(graph.bases, ids.max(), side="right")) - 1] for ids in told[0]]
        if all(node is nodes[0] for node in nodes):
            return nodes[0], told
        if len({(node.rows_shape, node.channels) for node in nodes}) > 1:
            raise UnsupportedOperator(graph, "attention with a computed bias whose heads lie in different tensors")
        joined = torch.cat([graph.ids(node) for node in nodes], -1)
        graph.map("mulc", Value(joined), x=1.0, channel=joined.dim() - 1, ordered=True)
        copied, moved = graph.nodes[-1], np.empty_like(told)
        for head, node in enumerate(nodes):
            row, slot = np.divmod(told[:, head] - node.base, node.channels + 1)
            if (told[:, head] < node.base).any() or (row >= node.rows).any():
                raise UnsupportedOperator(graph, "attention with a computed bias whose keys lie in different tensors")
            moved[:, head] = copied.base + row * (copied.channels + 1) + head * node.channels + slot
        return copied, moved


def _whole(node: Node, rows: np.ndarray) -> Piece:
    return Piece(node, rows, np.zeros(len(rows), np.int32), 1, node.channels)


def _distinct(tensor: Tensor, sources: Sequence[str]) -> tuple[bool, bool, bool]:
    """Returns along which of the dimensions [heads, T, S] the values differ, or may with other parameters."""
    if sources:
        return tuple(n > 1 for n in tensor.shape)
    return tuple(
        n > 1 and not torch.equal(tensor.narrow(d, 0, 1).expand_as(tensor), tensor) for d, n in enumerate(tensor.shape)
    )
