"""The copies that a Python loop over positions made of its nodes become one node each, which computes all positions.

A loop ``for t in range(T): h = cell(x[:, t], h)`` is traced as T copies of the cell's nodes, each of one row a sample.
Their merged nodes have T rows a sample and read one another at earlier rows, so that the program does not grow with T.
Merging only renumbers rows: every row is computed as before, from what it was computed from before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from fastgen.generate.ir.graph import ChannelRun, Constant, Graph, Node, Piece, Recipe, Term, derive
from fastgen.generate.ir.loops import order_loops
from fastgen.generate.ir.records import same_values
from fastgen.generate.passes.loop_rows import loop_places
from fastgen.generate.passes.needed_rows import needed_rows
from fastgen.generate.passes.repeated_nodes import BY_NUMBER, repeated_nodes
from fastgen.generate.schedule.scheduler import DrawSite


def roll_up_loops(graph: Graph, draws: list[DrawSite]) -> None:
    """Merges the copies of nodes that loops made, and orders the loops that arise."""
    needed = needed_rows(graph, draws)
    copies = repeated_nodes(graph, needed)
    if copies:
        _Merging(graph, draws, copies, needed).run()


@dataclass(frozen=True)
class _Copy:
    """A node's place in the merged node: its rows are some rows of ``node``, or -1 where nobody needs them."""

    node: Node
    rows: np.ndarray


@dataclass
class _Joined:
    """A piece of many readers' rows, while it is put together; ``node`` is None for rows of several constants."""

    key: tuple
    rows: np.ndarray
    slots: np.ndarray
    parts: list[tuple[Piece, np.ndarray]] = field(default_factory=list)

    def takes(self, key: tuple, at: np.ndarray) -> bool:
        return self.key == key and not (self.rows[at] >= 0).any()


class _Merging:
    def __init__(
        self, graph: Graph, draws: list[DrawSite], copies: list[list[Node]], needed: Mapping[Node, np.ndarray]
    ) -> None:
        self.graph, self.draws, self.copies, self.needed = graph, draws, copies, needed
        self.rank: dict[Node, float] = {node: node.index for node in graph.nodes}
        self.target: dict[Node, _Copy] = {}
        self.chosen: dict[tuple, Piece] = {}

    def run(self) -> None:
        rest = [node for node in self.graph.nodes if node.kind == "computed"]
        merged = [self._node(members) for members in self.copies]
        rest = [node for node in rest if node not in self.target]
        for node, members in zip(merged, self.copies, strict=True):
            rows = [self.target[member].rows for member in members]
            for number, run in enumerate(node.runs):
                self._join(run, [member.runs[number] for member in members], rows, node)
        for node in rest:
            for run in node.runs:
                if any(piece.node in self.target for piece in run.pieces()):
                    self._join(run, [replace(run)], [np.arange(node.rows)], node)
        for draw in self.draws:
            draw.pieces = [self._moved(piece) for piece in draw.pieces]
        for member in self.target:
            member.kind = "replaced"
        for node in self.graph.nodes:
            self.rank.setdefault(node, node.index)
        order_loops(self.graph, self.rank)

    def _node(self, members: list[Node]) -> Node:
        """Adds the merged node, sample by sample and in each of them copy by copy, or along the rows of the image."""
        last, count = members[-1], len(members)
        half = last.rows // 2
        inner = last.rows_shape[1:] if last.rows_shape[0] == 2 else (half,)
        shape, places = (count, *inner), np.arange(count * half).reshape(count, half)
        if len(self.graph.grid) == 2 and half > 1:
            found = loop_places(members, self.needed)
            if not np.array_equal(found.index, places):
                shape, places = found.shape, found.index
        rows = math.prod(shape)
        places = np.stack([places, np.where(places >= 0, places + rows, -1)])

        def together(times: Iterable[np.ndarray]) -> np.ndarray:
            given = np.stack([t.reshape(2, half) for t in times], 1)
            filled = np.zeros(2 * rows, given.dtype)
            filled[places[places >= 0]] = given[places >= 0]
            return filled

        runs = [
            replace(
                run,
                ready=together(member.runs[number].ready for member in members),
                uses=together(member.runs[number].uses for member in members),
            )
            for number, run in enumerate(last.runs)
        ]
        with self.graph.at(last.place):
            node = self.graph.add("computed", (2, *shape), last.channels, runs)
        self.rank[node] = last.index
        for number, member in enumerate(members):
            self.target[member] = _Copy(node, places[:, number].reshape(-1))
        return node

    def _moved(self, piece: Piece) -> Piece:
        """Returns a piece that reads merged nodes in the place of their copies."""
        if piece.node not in self.target:
            return piece
        copy = self.target[piece.node]
        rows = np.where(piece.rows >= 0, copy.rows[piece.rows], -1).astype(np.int32)
        return Piece(copy.node, rows, piece.slots, piece.stride, piece.length)

    def _join(self, run: ChannelRun, parts: list[ChannelRun], rows: list[np.ndarray], node: Node) -> None:
        """Makes ``run`` read at ``rows[k]`` what ``parts[k]`` reads."""
        if run.terms is not None:
            read = [(t.piece, at, (t.index, t.weight_rows.tobytes(), t)) for p, at in zip(parts, rows, strict=True)
                    for t in p.terms]  # fmt: skip
            terms = {key[:-1]: key[-1] for *_, key in read}
            joined = self._joined([(piece, at, key[:-1]) for piece, at, key in read], node.rows, len(parts) > 1)
            run.terms = self._terms([(piece, terms[key]) for piece, key in joined], node)
            return
        operands = []
        for number in range(len(run.operands)):
            read = [(piece, at, ()) for p, at in zip(parts, rows, strict=True) for piece in p.operands[number]]
            operands.append([piece for piece, _ in self._joined(read, node.rows, len(parts) > 1)])
        run.operands = operands
        if len({part.x for part in parts}) > 1:
            self._take_numbers(run, [(part.x, at) for part, at in zip(parts, rows, strict=True)], node)

    def _take_numbers(self, run: ChannelRun, numbers: list[tuple[float, np.ndarray]], node: Node) -> None:
        """Makes an operation with another number for every copy one with an operand of these numbers."""
        values = torch.tensor([[x] for x, _ in numbers], dtype=torch.float32)
        with self.graph.at(node.place):
            constant = self.graph.constant_node((len(numbers),), 1, Recipe((), lambda: values))
        rows = np.full(node.rows, -1, np.int32)
        for number, (_, at) in enumerate(numbers):
            rows[at[at >= 0]] = number
        run.operands.append([Piece(constant, rows, np.zeros(node.rows, np.int32), 0, run.length)])
        run.opcode, run.x = BY_NUMBER[run.opcode], 0.0

    def _joined(
        self, read: list[tuple[Piece, np.ndarray, tuple]], rows: int, stacks: bool
    ) -> list[tuple[Piece, tuple]]:
        """Returns pieces for all rows, with their keys; ``stacks``: different constants become rows of one."""
        found: list[_Joined] = []
        for given, at, key in read:
            piece = self._moved(given)
            inside = (piece.rows >= 0) & (at >= 0)
            if not inside.any():
                continue
            slot = -1 if piece.varies else int(piece.slots[inside][0])
            source = (piece.node.channels,) if stacks and piece.node.kind == "constant" else (piece.node, slot)
            whole = (key, piece.stride, piece.length, piece.node.kind, source)
            place = next((j for j in found if j.takes(whole, at[inside])), None)
            if place is None:
                place = _Joined(whole, np.full(rows, -1, np.int32), np.zeros(rows, np.int32))
                found.append(place)
            place.rows[at[inside]], place.slots[at[inside]] = piece.rows[inside], piece.slots[inside]
            place.parts.append((piece, at[inside]))
        return [(self._piece(place), place.key[0]) for place in found]

    def _piece(self, joined: _Joined) -> Piece:
        """Returns the piece; of several constants, of a new one with a row for every row that reads one.

        Where both samples read alike, the rows of the first one do for both.
        """
        first = joined.parts[0][0]
        nodes: list[Node] = []
        number = np.full(len(joined.rows), -1)
        for piece, at in joined.parts:
            number[at] = next((n for n, node in enumerate(nodes) if self._equal(piece.node, node)), len(nodes))
            nodes += [piece.node] if number[at[0]] == len(nodes) else []
        if len(nodes) == 1:
            return Piece(first.node, joined.rows, joined.slots, first.stride, first.length)
        samples = np.split(np.stack([number, joined.rows, joined.slots], 1), 2)
        count = 1 if np.array_equal(*samples) else 2
        chosen = np.flatnonzero(number[: len(number) * count // 2] >= 0)
        channels = first.length if first.stride else 1
        columns = joined.slots[chosen, None] + first.stride * np.arange(channels)

        def values(*tables: torch.Tensor) -> torch.Tensor:
            flat = [table.reshape(node.rows, node.channels) for table, node in zip(tables, nodes, strict=True)]
            return torch.stack(
                [flat[n][r, c] for n, r, c in zip(number[chosen], joined.rows[chosen], columns, strict=True)]
            )

        constants = [Constant(node.values(self.graph.constants), node.values) for node in nodes]
        with self.graph.at(first.node.place):
            node = self.graph.constant_node((len(chosen),), channels, derive(values, *constants).recipe)
        rows = np.full(len(number) * count // 2, -1, np.int32)
        rows[chosen] = np.arange(len(chosen))
        rows = np.tile(rows, 2 // count)
        return Piece(node, rows, np.zeros(len(rows), np.int32), min(first.stride, 1), first.length)

    def _equal(self, a: Node, b: Node) -> bool:
        """Whether two nodes are one, or constants of always the same values."""
        if a is b or a.kind != "constant":
            return a is b
        return a.rows == b.rows and same_values(a.values, b.values, self.graph.constants)

    def _terms(self, read: list[tuple[Piece, Term]], node: Node) -> list[Term]:
        """Returns the terms; what meets the same weights at different rows is first brought into one node."""
        alike: dict[tuple, list[tuple[Piece, Term]]] = {}
        for piece, term in read:
            key = (term.index, term.weight_rows.tobytes(), piece.length, id(piece) if term.index else None)
            alike.setdefault(key, []).append((piece, term))
        terms = []
        for members in alike.values():
            pieces, term = [piece for piece, _ in members], members[0][1]
            apart = np.sum([piece.rows >= 0 for piece in pieces], 0).max() < 2
            if apart and sum(piece.node.kind != "constant" for piece in pieces) > 1:
                pieces = [self._chosen(pieces, node)]
            terms += [Term(piece, term.weight_rows, term.index) for piece in pieces]
        return terms

    def _chosen(self, pieces: list[Piece], reader: Node) -> Piece:
        """Returns a piece of a new node that holds, for every row of the reader, what one of the pieces gives."""
        length = pieces[0].length
        key = tuple((p.node, p.rows.tobytes(), p.slots.tobytes(), p.stride) for p in pieces)
        if key in self.chosen:
            return self.chosen[key]
        ready, uses = self.graph.times(pieces, reader.rows)
        run = ChannelRun(0, length, ready, uses, opcode="mulc", operands=[pieces], x=1.0)
        with self.graph.at(reader.place):
            node = self.graph.add("computed", reader.rows_shape, length, [run])
        self.rank[node] = self.rank[reader] - 0.5
        rows = np.where(np.any([piece.rows >= 0 for piece in pieces], 0), np.arange(reader.rows), -1)
        self.chosen[key] = Piece(node, rows.astype(np.int32), np.zeros(reader.rows, np.int32), 1, length)
        return self.chosen[key]
