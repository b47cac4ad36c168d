"""Cells that depend on no input and that no step is free to compute: their values become constants.

A network that pads its input by its whole receptive field computes many cells from padding and biases alone. On the
domain of their node they would belong to steps before the first; and where the rows of a node are not the two samples'
halves (dilation folded into the batch), they do not even tell to which sample they belong. ``fold_constant_cells``
evaluates such cells once, and whoever reads them reads a constant node instead, filled again by ``Sampler.refresh``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastgen.generate.errors import CompileError
from fastgen.generate.ir.graph import ChannelRun, Graph, Node, Piece, Recipe, Term
from fastgen.generate.ir.instructions import Operation
from fastgen.generate.ir.loops import loops_of
from fastgen.generate.ir.opcodes import OPCODE, REDUCTIONS
from fastgen.generate.ir.operation_values import apply_operation
from fastgen.generate.ir.records import halves
from fastgen.generate.orders import Order
from fastgen.generate.passes.loop_rows import loop_places
from fastgen.generate.passes.needed_rows import needed_rows
from fastgen.generate.passes.repeated_nodes import repeated_nodes
from fastgen.generate.schedule.scheduler import DrawSite

_LONGEST_PERIOD = 64

Constants = dict[str, Tensor]


Folded = list[tuple[str, Callable[[Constants], Tensor]]]
"""Names of constants of the graph, and how to make each from those before it."""


def fold_constant_cells(graph: Graph, order: Order, draws: list[DrawSite]) -> Folded:
    """Replaces what is read of cells that depend on no input, and have no step, by constant nodes.

    Returns the constants that hold the cells' values, which new parameters change.

    Raises:
        CompileError: such a cell is the index of a table's row.
    """
    settled = {node: _without_step(node, order, _lag(draws)) for node in graph.nodes if node.kind == "computed"}
    if order.regular and not order.is_sequence:
        _settle_beside_images(graph, draws, settled)
    for piece in (piece for draw in draws for piece in draw.pieces):
        if piece.node in settled:
            settled[piece.node][piece.rows] = False
    _keep_attention(graph, settled)
    settled = {node: rows for node, rows in settled.items() if rows.any()}
    if not settled:
        return []
    cells, folded = _evaluated(graph, settled)
    _Readers(graph, settled, cells).rewrite()
    return folded


# ---- which cells


def _settle_beside_images(graph: Graph, draws: list[DrawSite], settled: dict[Node, np.ndarray]) -> None:
    """Adds what a loop over the columns of a skewed image computes of padding, beside the image."""
    needed = needed_rows(graph, draws)
    for members in repeated_nodes(graph, needed):
        beside = loop_places(members, needed).index < 0
        for node, cells in zip(members, beside, strict=True):
            settled[node] |= (node.uses == 0) & np.tile(cells, 2)


def _lag(draws: list[DrawSite]) -> int:
    """Returns by how many steps every draw comes after its parameters are ready."""
    lags = []
    for draw in draws:
        for piece in draw.pieces:
            for run in piece.source_runs():
                moving = run.uses[piece.rows] > 0
                lags.append(int((draw.steps - run.ready[piece.rows])[moving].min(initial=draw.steps.max(initial=0))))
    return min(lags, default=0)


def _keep_attention(graph: Graph, settled: dict[Node, np.ndarray]) -> None:
    """Leaves what attention reads, and what depends on it, to the schedule."""
    depends: dict[Node, np.ndarray] = {}
    for node in (node for node in graph.nodes if node.kind == "computed"):
        depends[node] = np.zeros(node.rows, bool)
        for run in node.runs:
            if run.attention is not None:
                depends[node][:] = True
                for read in {piece.node for piece in run.latest()} & settled.keys():
                    settled[read][:] = False
            for piece in run.pieces():
                if piece.node in depends:
                    depends[node] |= (piece.rows >= 0) & depends[piece.node][piece.rows]
        settled[node] &= ~depends[node]


def _without_step(node: Node, order: Order, lag: int) -> np.ndarray:
    """Returns the rows ``[rows]`` that depend on no input and lie before the first step, or nowhere."""
    uses = node.uses
    still = uses == 0
    if not still.any() or not halves(uses):
        return still
    settled = np.zeros(node.rows, bool)
    if not order.is_sequence or node.rows_shape[0] != 2 or sum(n > 1 for n in node.rows_shape[1:]) > 1:
        return settled
    for half in np.split(np.arange(node.rows), 2):
        first = int(np.argmax(~still[half]))
        ready = np.max([run.ready[half] for run in node.runs], 0)
        settled[half[:first]] = _before(ready[first:], first) < -lag
    return settled


def _before(ready: np.ndarray, count: int) -> np.ndarray:
    """Returns the times of the ``count`` rows before the first, by the period of ``ready``; zeros where it has none."""
    ready = ready[ready < ready.max()]
    for period in range(1, min(_LONGEST_PERIOD, len(ready) // 2) + 1):
        advance = ready[period:] - ready[:-period]
        if advance[0] > 0 and (advance == advance[0]).all():
            back = np.arange(count, 0, -1)
            periods = -(-back // period)
            return ready[periods * period - back] - periods * advance[0]
    return np.zeros(count, np.int64)


# ---- their values


@dataclass(eq=False)
class _Cells:
    """The rows of a node whose values a folded constant ``name`` holds, ``[len(rows), channels]``.

    ``rank[r]`` is the number of row r among them, ``alike[n, r]`` the number of a class of rows that run n computes
    alike, whatever the parameters are.
    """

    name: str
    rows: np.ndarray
    rank: np.ndarray
    alike: np.ndarray


def _evaluated(graph: Graph, settled: dict[Node, np.ndarray]) -> tuple[dict[Node, _Cells], Folded]:
    """Returns the cells that settle, and those that they are computed from; their values become folded constants."""
    wanted = {node: rows.copy() for node, rows in settled.items()}
    loops = loops_of(graph)
    for members in reversed(loops):
        while _want_sources(members, wanted):  # what a loop's cells read of it, from the last one back
            pass
    cells: dict[Node, _Cells] = {}
    folded: Folded = []

    def fold(name: str, evaluate: Callable[[Constants], Tensor]) -> None:
        graph.constants[name] = evaluate(graph.constants)
        folded.append((name, evaluate))

    for members in loops:
        chosen = [node for node in members if node.kind == "computed" and node in wanted]
        for node in chosen:
            rows = np.flatnonzero(wanted[node])
            rank = np.full(node.rows, -1)
            rank[rows] = np.arange(len(rows))
            name, shape = f"still cells of node {node.index}", (len(rows), node.channels)
            if node.loop:
                alike = np.tile(np.where(rank >= 0, np.arange(node.rows), -1), (len(node.runs), 1))
                fold(name, lambda _, shape=shape: torch.zeros(shape))
            else:
                alike = np.stack([_classes(run, rows, node.rows, cells) for run in node.runs])
            cells[node] = _Cells(name, rows, rank, alike)
        for _ in range(max(len(cells[node].rows) for node in chosen) if chosen and chosen[0].loop else 1):
            for node in chosen:  # of a loop as often as it has cells: each may need the one before
                fold(cells[node].name, _evaluation(node, cells))
    return cells, folded


def _want_sources(members: list[Node], wanted: dict[Node, np.ndarray]) -> bool:
    """Adds to the wanted cells those that they are computed from; returns whether a loop's own were added."""
    added = False
    for node in (node for node in reversed(members) if node.kind == "computed" and node in wanted):
        for run in node.runs:
            rows = wanted[node] & (run.uses == 0)
            for piece in run.pieces():
                source = piece.rows[rows]
                source = source[source >= 0]
                table = wanted.setdefault(piece.node, np.zeros(piece.node.rows, bool))
                added |= 0 < node.loop == piece.node.loop and not table[source].all()
                table[source] = True
    return added


def _classes(run: ChannelRun, rows: np.ndarray, count: int, cells: dict[Node, _Cells]) -> np.ndarray:
    """``[count]``: equal numbers where the run computes equal values from equal cells."""
    rows = rows[run.uses[rows] == 0]
    alike = np.full(count, -1)
    keys = [key for piece in run.pieces() for key in _keys(piece, rows, cells)]
    alike[rows] = np.unique(np.stack(keys, 1), axis=0, return_inverse=True)[1].reshape(-1) if keys else 0
    return alike


def _keys(piece: Piece, rows: np.ndarray, cells: dict[Node, _Cells]) -> list[np.ndarray]:
    """Numbers that are equal where the piece gives equal values, -1 where it gives none."""
    source, slots = piece.rows[rows], piece.slots[rows]
    if (source < 0).all():
        return []
    if piece.node.kind == "constant":
        keys = [source]
    else:
        numbers = piece.source_numbers()
        keys = [np.where(source >= 0, cells[piece.node].alike[n, source], -1) for n in numbers]
    return [*keys, np.where(source >= 0, slots, -1)]


def _evaluation(node: Node, cells: dict[Node, _Cells]) -> Callable[[Constants], Tensor]:
    own = cells[node]
    runs = [replace(run) for run in node.runs]  # as they are now: readers are rewritten later

    def evaluate(constants: Constants) -> Tensor:
        values = torch.zeros(len(own.rows), node.channels, dtype=torch.float32)
        for run in runs:
            rows = own.rows[run.uses[own.rows] == 0]
            if len(rows):
                compute = _contraction if run.terms is not None else _operation
                values[own.rank[rows], run.slot : run.slot + run.length] = compute(run, rows, cells, constants)
        return values

    return evaluate


def _contraction(run: ChannelRun, rows: np.ndarray, cells: dict[Node, _Cells], constants: Constants) -> Tensor:
    matrix = run.matrix(constants).double()[:, torch.from_numpy(run.columns)]
    sums = torch.zeros(len(rows), len(run.columns), dtype=torch.float64)
    if run.bias is not None:
        sums += run.bias(constants).double()[torch.from_numpy(run.columns)]
    for term in run.terms:
        values, weights = _read(term.piece, rows, cells, constants), matrix[torch.from_numpy(term.weight_rows)]
        if term.index:
            inside = torch.from_numpy(term.piece.rows[rows] >= 0)
            sums[inside] += weights[values[inside, 0].long()]
        else:
            sums += values.double() @ weights
    return sums.float()


def _operation(run: ChannelRun, rows: np.ndarray, cells: dict[Node, _Cells], constants: Constants) -> Tensor:
    operands = []
    for pieces in run.operands:
        operand = torch.zeros(len(rows), run.length, dtype=torch.float32)
        for piece in pieces:
            operand += _read(piece, rows, cells, constants)
        operands.append(operand)
    second = int(run.x) if run.opcode in REDUCTIONS else 1
    return apply_operation(run.opcode, Operation(OPCODE[run.opcode], 0, 0, second, 2, run.x, run.y), operands)


def _read(piece: Piece, rows: np.ndarray, cells: dict[Node, _Cells], constants: Constants) -> Tensor:
    """``[len(rows), length]``, zeros where the piece gives nothing."""
    inside = piece.rows[rows] >= 0
    source, slots = piece.rows[rows][inside], piece.slots[rows][inside]
    values = torch.zeros(len(rows), piece.length, dtype=torch.float32)
    if not inside.any():
        return values
    if piece.node.kind == "constant":
        table = piece.node.values(constants).reshape(piece.node.rows, piece.node.channels)
    else:
        table, source = constants[cells[piece.node].name], cells[piece.node].rank[source]
    values[torch.from_numpy(inside)] = table[source[:, None], slots[:, None] + piece.stride * np.arange(piece.length)]
    return values


# ---- their readers


class _Readers:
    """Makes everybody who reads settled cells read constant nodes instead."""

    def __init__(self, graph: Graph, settled: dict[Node, np.ndarray], cells: dict[Node, _Cells]) -> None:
        self.graph, self.settled, self.cells = graph, settled, cells
        self.made: dict[tuple, Node] = {}

    def rewrite(self) -> None:
        for node in [node for node in self.graph.nodes if node.kind == "computed"]:
            free = ~self.settled.get(node, np.zeros(node.rows, bool))
            folded = not halves(node.uses)
            for run in node.runs:
                if run.terms is not None:
                    run.terms = self._terms(run, free, folded)
                elif run.attention is None:
                    split = [[self._split(piece, run, free, folded) for piece in pieces] for pieces in run.operands]
                    run.operands = [[p for kept, still in pairs for p in (*kept, *still)] for pairs in split]

    def _terms(self, run: ChannelRun, free: np.ndarray, folded: bool) -> list[Term]:
        terms, constants = [], []
        for term in run.terms:
            kept, still = self._split(term.piece, run, free, folded)
            if still and term.index:
                node = term.piece.node
                raise CompileError(
                    f"an index that depends on no input is computed at {node.name}, {node.where}; make it a constant"
                )
            terms += [term if piece is term.piece else Term(piece, term.weight_rows, term.index) for piece in kept]
            constants += [Term(piece, term.weight_rows) for piece in still]
        return terms + constants

    def _split(self, piece: Piece, run: ChannelRun, free: np.ndarray, folded: bool) -> tuple[list[Piece], list[Piece]]:
        """Returns the piece without the settled cells that ``free`` rows read, and the constants read instead."""
        if piece.node not in self.settled:
            return [piece], []
        hit = (piece.rows >= 0) & self.settled[piece.node][piece.rows] & free
        if not hit.any():
            return [piece], []
        kept = Piece(
            piece.node, np.where(hit, -1, piece.rows).astype(np.int32), piece.slots, piece.stride, piece.length
        )
        readers = np.flatnonzero(hit)
        sample = run.uses[readers] if folded else readers >= len(hit) // 2
        readers = readers[np.lexsort((readers, run.ready[readers] * folded, sample))]
        return [kept] if (kept.rows >= 0).any() else [], [self._constant(piece, readers)]

    def _constant(self, piece: Piece, readers: np.ndarray) -> Piece:
        """Returns one row where all readers read alike, else one row a reader, in the order of time."""
        one = all((key == key[0]).all() for key in _keys(piece, readers, self.cells))
        chosen = readers[:1] if one else readers
        rows = np.full(len(piece.rows), -1, np.int32)
        rows[readers] = 0 if one else np.arange(len(readers))
        node = self._node(piece, piece.rows[chosen], piece.slots[chosen])
        return Piece(node, rows, np.zeros(len(rows), np.int32), min(piece.stride, 1), piece.length)

    def _node(self, piece: Piece, source: np.ndarray, slots: np.ndarray) -> Node:
        key = (piece.node, source.tobytes(), slots.tobytes(), piece.stride, piece.length)
        if key not in self.made:
            cells = self.cells[piece.node]
            channels = piece.length if piece.stride else 1
            at, columns = cells.rank[source][:, None], slots[:, None] + piece.stride * np.arange(channels)
            recipe = Recipe((cells.name,), lambda values: values[at, columns])
            with self.graph.at(piece.node.place):
                self.made[key] = self.graph.constant_node((len(source),), channels, recipe)
        return self.made[key]
