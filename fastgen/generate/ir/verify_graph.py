"""Checks of a graph, which every pass must leave as sound as it found it. Tests run them after each pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fastgen.generate.ir.attend import attention_times
from fastgen.generate.ir.graph import ChannelRun, Graph, Node, Piece
from fastgen.generate.ir.opcodes import OPCODES, REDUCTIONS
from fastgen.generate.ir.records import Attention

KINDS = ("input", "context", "constant", "computed")


class GraphError(AssertionError):
    """The graph contradicts itself: a fault of whoever built or rewrote it."""


def verify(graph: Graph, read: Iterable[Piece] = ()) -> None:
    """Checks that nodes own their ids, that runs share out the channels, and that pieces lie in what is defined before.

    Args:
        graph: the graph, between two passes.
        read: pieces that are read from outside of it, as by the draws.

    Raises:
        GraphError: names the node and what is wrong with it.
    """
    known = set(graph.nodes)
    next_id = 1
    for index, node in enumerate(graph.nodes):
        _require(node.index == index, node, f"is number {index} of the nodes")
        _require(node.kind in KINDS, node, f"has kind {node.kind!r}")
        _require(node.base == next_id == graph.bases[index], node, f"has ids from {node.base} on, not from {next_id}")
        next_id += node.rows * (node.channels + 1)
        _check_runs(node)
        if node.kind == "constant":
            _check_constant(graph, node)
        for run in node.runs:
            if node.kind == "computed":
                _check_computed(graph, node, run, known)
            else:
                given = run.terms is None and run.opcode is None and not run.operands and run.attention is None
                _require(given, node, "is given, and yet computed")
    for piece in read:
        _require(piece.node in known, piece.node, "is read from outside and is not in the graph")
        _check_piece(piece.node, piece)


def _require(holds: bool, node: Node, words: str) -> None:
    if not holds:
        raise GraphError(f"node %{node.index} ({node.kind}) {words}; its place is {node.place}")


def _check_runs(node: Node) -> None:
    covered = np.zeros(node.channels, int)
    for number, run in enumerate(node.runs):
        slots = f"run [{run.slot}:{run.slot + run.length}]"
        inside = run.slot >= 0 and run.length >= 1 and run.slot + run.length <= node.channels
        _require(inside, node, f"has {node.channels} channels, and a {slots}")
        covered[run.slot : run.slot + run.length] += 1
        found = node.run_of_slot[run.slot : run.slot + run.length]
        _require((found == number).all(), node, f"looks up another run than {slots}")
        for name, times in (("ready", run.ready), ("uses", run.uses)):
            _require(times.shape == (node.rows,), node, f"has {node.rows} rows; {name} of {slots} has {times.shape}")
        _require((run.ready >= 0).all() and (run.uses <= 3).all(), node, f"has impossible times in {slots}")
    _require((covered == 1).all(), node, "has channels in no run, or in two")


def _check_constant(graph: Graph, node: Node) -> None:
    _require(node.values is not None, node, "has no values")
    missing = [name for name in node.values.sources if name not in graph.constants]
    _require(not missing, node, f"is made of unknown constants: {', '.join(missing)}")
    size = node.values(graph.constants).numel()
    _require(size == node.rows * node.channels, node, f"is {node.rows} x {node.channels}; its values are {size}")
    _require(not node.uses.any(), node, "is constant, and yet depends on an input")


def _check_computed(graph: Graph, node: Node, run: ChannelRun, known: set[Node]) -> None:
    slots = f"run [{run.slot}:{run.slot + run.length}]"
    ways = sum(way is not None for way in (run.terms, run.opcode, run.attention))
    _require(ways == 1, node, f"computes {slots} in {ways} ways")
    pieces = run.pieces()
    for piece in pieces:
        _require(piece.node in known, node, f"reads a node in {slots} that is not in the graph")
        before = piece.node.index < node.index or piece.node.kind == "constant"
        _require(before, node, f"reads %{piece.node.index} in {slots}, which is defined later")
        _require(len(piece.rows) == node.rows, node, f"has {node.rows} rows; a piece of {slots} has {len(piece.rows)}")
        _check_piece(node, piece)
    if run.attention is not None:
        _check_attention(node, run.attention, known)
        ready, uses = attention_times(graph, run.attention, node.rows)
    else:
        ready, uses = graph.times(pieces, node.rows)
    _require((run.ready >= ready).all(), node, f"is ready before what it reads in {slots}")
    _require(((run.uses | uses) == run.uses).all(), node, f"depends on less than what it reads in {slots}")
    if run.terms is not None:
        _check_terms(graph, node, run)
    elif run.opcode is not None:
        _check_operation(node, run)


def _check_piece(reader: Node, piece: Piece) -> None:
    read = piece.rows >= 0
    name = f"a piece of %{piece.node.index}"
    _require(len(piece.slots) == len(piece.rows), reader, f"has {name} with rows and slots of different numbers")
    _require(piece.length >= 1 and piece.stride >= 0, reader, f"has {name} of {piece.length} slots by {piece.stride}")
    _require((piece.rows < piece.node.rows).all(), reader, f"has {name} beyond its {piece.node.rows} rows")
    first, last = piece.slots[read], piece.slots[read] + (piece.length - 1) * piece.stride
    inside = (first >= 0).all() and (last < piece.node.channels).all()
    _require(bool(inside), reader, f"has {name} beyond its {piece.node.channels} channels")


def _check_attention(node: Node, attention: Attention, known: set[Node]) -> None:
    heads, groups, (queries, keys) = attention.heads, attention.groups, attention.seen.shape
    _require(heads >= 1 and heads % groups == 0, node, f"attends with {heads} heads in {groups} groups")
    _require(node.rows % queries == 0, node, f"has {node.rows} rows for {queries} queries")
    depth, width = attention.keys.length // groups, attention.values.length // groups
    _require(attention.queries.length == heads * depth, node, f"has queries that are not {heads} x {depth}")
    _require(node.channels == heads * width, node, f"has {node.channels} channels for {heads} x {width}")
    for read in (attention.keys, attention.values):
        _require(read.node in known, node, "attends to a node that is not in the graph")
        _require(read.node.index < node.index, node, f"attends to %{read.node.index}, which is defined later")
        samples = read.rows.shape == (node.rows // queries, keys)
        inside = (read.rows >= 0).all() and (read.rows < read.node.rows).all()
        _require(samples and bool(inside), node, f"attends to rows that %{read.node.index} does not have")


def _check_terms(graph: Graph, node: Node, run: ChannelRun) -> None:
    _require(run.matrix is not None and run.columns is not None, node, "contracts without a matrix")
    rows, columns = run.matrix(graph.constants).shape
    slots = f"run [{run.slot}:{run.slot + run.length}]"
    fits = len(run.columns) == run.length and _within(run.columns, columns)
    _require(fits, node, f"has columns in {slots} that the matrix of {columns} does not have")
    for term in run.terms:
        count = len(term.weight_rows)
        _require(_within(term.weight_rows, rows), node, f"has a term beyond the {rows} rows of its matrix")
        length = 1 if term.index else count
        _require(term.piece.length == length, node, f"has a term of {term.piece.length} channels for {count} rows")
    if run.bias is not None:
        size = run.bias(graph.constants).numel()
        _require(_within(run.columns, size), node, f"has a bias of {size} for columns up to {run.columns.max()}")


def _check_operation(node: Node, run: ChannelRun) -> None:
    _require(run.opcode in OPCODES, node, f"computes the unknown operation {run.opcode!r}")
    needed = OPCODES[run.opcode].registers
    _require(len(run.operands) == needed, node, f"gives {len(run.operands)} operands to {run.opcode}, not {needed}")
    if run.opcode in REDUCTIONS:
        _require(run.x >= 1 and run.length % run.x == 0, node, f"has groups of {run.x} in {run.length} channels")
    for pieces in run.operands:
        lengths = {piece.length for piece in pieces}
        _require(lengths <= {run.length}, node, f"has operands of {lengths} channels for {run.length}")
        given = np.sum([piece.rows >= 0 for piece in pieces], axis=0) if pieces else np.zeros(1, int)
        _require((given <= 1).all(), node, "has an operand that two pieces give at one row")


def _within(numbers: Sequence[int] | np.ndarray, size: int) -> bool:
    return not len(numbers) or (min(numbers) >= 0 and max(numbers) < size)
