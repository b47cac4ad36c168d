"""Nodes and the ids of their elements.

A *node* is a tensor that a machine will compute (or is given): rows of channels. Its element (row, slot) has the id
``base + row * (channels + 1) + slot``, so a run of a row's channels is a run of ids, and runs never cross rows. Id 0 is
the constant zero, id -(k + 1) the constant ``values[k]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from fastgen.generate.errors import CompileError
from fastgen.generate.ir.records import ChannelRun, Node, Piece, Place


class Ids:
    """The nodes, and what an id stands for."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.values: list[float] = []
        self.bases = np.empty(0, np.int64)
        self.widest = 1
        self.place = Place()
        """Where in the network the nodes are that are added now."""
        self._owners: dict[int, tuple[StorageWeakRef, Node]] = {}
        self._next = 1
        self._value_ids: dict[float, int] = {}

    @contextmanager
    def at(self, place: Place) -> Iterator[None]:
        """Nodes that are added within are of this place, and errors name it."""
        before, self.place = self.place, place
        try:
            yield
        finally:
            self.place = before

    def add(self, kind: str, rows_shape: Sequence[int], channels: int, runs: list[ChannelRun], **options) -> Node:
        """Makes a new node, with the next free ids."""
        node = Node(len(self.nodes), kind, self.place, tuple(rows_shape), channels, self._next, runs, **options)
        self.nodes.append(node)
        self.bases = np.append(self.bases, node.base)
        self._next += node.rows * (channels + 1)
        self.widest = max(self.widest, channels)
        return node

    def reorder(self, nodes: list[Node]) -> None:
        """Puts the nodes in another order, without those that are left out; earlier ids stand for nothing any more."""
        self.nodes, self.bases, self._next = [], np.empty(len(nodes), np.int64), 1
        self._owners.clear()
        for node in nodes:
            node.index, node.base = len(self.nodes), self._next
            self.bases[node.index] = node.base
            self.nodes.append(node)
            self._next += node.rows * (node.channels + 1)

    def ids(self, node: Node) -> Tensor:
        """``[*rows_shape, channels]``"""
        rows = torch.arange(node.rows, dtype=torch.int64) * (node.channels + 1) + node.base
        ids = (rows[:, None] + torch.arange(node.channels)).reshape(*node.rows_shape, node.channels)
        storage = ids.untyped_storage()
        self._owners[storage.data_ptr()] = StorageWeakRef(storage), node
        return ids

    def owner(self, ids: Tensor) -> Node | None:
        """Returns the node whose own ids (from ``ids``) this tensor is a view of."""
        reference, node = self._owners.get(ids.untyped_storage().data_ptr(), (None, None))
        return node if reference is not None and not reference.expired() else None

    def value_ids_of(self, tensor: Tensor) -> Tensor:
        flat = tensor.to(torch.float64).reshape(-1)
        unique, inverse = torch.unique(flat, return_inverse=True)
        table = torch.tensor([self.value_id(v) for v in unique.tolist()], dtype=torch.int64)
        return table[inverse].reshape(tensor.shape)

    def is_value(self, ids: Tensor, value: float) -> Tensor:
        """Finds where the ids are those of a constant."""
        return ids == self._value_ids.get(value, 1 << 62)

    def value_id(self, value: float) -> int:
        if value == 0:
            return 0
        if value not in self._value_ids:
            self.values.append(value)
            self._value_ids[value] = -len(self.values)
        return self._value_ids[value]

    def decode(self, ids: np.ndarray, stride: int, length: int) -> tuple[list[Piece], list[tuple[float, np.ndarray]]]:
        """Returns the pieces behind one id a row, and the constants (value, where) among them, zero left out."""
        pieces, constants = [], []
        present = ids > 0
        if present.any():
            found = ids[present]
            node_of = np.searchsorted(self.bases, found, side="right") - 1
            first = node_of[0]
            numbers = [first] if (node_of == first).all() else np.unique(node_of).tolist()
            for number in numbers:
                node = self.nodes[number]
                chosen = present.copy()
                chosen[present] = node_of == number
                offset = ids[chosen] - node.base
                rows = np.full(len(ids), -1, np.int32)
                slots = np.zeros(len(ids), np.int32)
                rows[chosen], slots[chosen] = np.divmod(offset, node.channels + 1)
                if (slots[chosen] + stride * (length - 1) >= node.channels).any():
                    raise CompileError(f"channels of {node.name} are read across positions at {self.place}")
                pieces.append(Piece(node, rows, slots, stride, length))
        if (ids < 0).any():
            for number in np.unique(ids[ids < 0]).tolist():
                constants.append((self.values[-number - 1], ids == number))
        return pieces, constants
