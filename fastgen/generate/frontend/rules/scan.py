"""Scans: states that are carried from one position to the next, computed for all positions by one set of nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fastgen.generate.errors import UnsupportedOperator
from fastgen.generate.ir.channels import Table, channel_runs
from fastgen.generate.ir.graph import ChannelRun, Constant, Graph, Node, Value
from fastgen.generate.ir.loops import settle_times

States = list[Value]


def scan(
    graph: Graph, step: Callable[[States], Sequence[Value]], initial: Sequence[Value | Constant], length: int
) -> States:
    """Returns what ``step`` makes of the states at every position, of those of the position before.

    Args:
        step: from the states of the position before ``[N, T, *state]``, for all positions at once, to the new ones. It
            may read other values ``[N, T, ...]``.
        initial: the states before the first position ``[N, *state]``, the channels last.
        length: positions T.

    Raises:
        UnsupportedOperator: the states depend on contexts alone; these are computed outside of the program.
    """
    first = len(graph.nodes)
    carried = [_carried(graph, [*_shape(state)], length) for state in initial]
    before = [_before(graph, node, state) for node, state in zip(carried, initial, strict=True)]
    after = list(step(before))
    made = [_defined(graph, node, value) for node, value in zip(carried, after, strict=True)]
    members = [node for node in graph.nodes[first:] if node.kind == "computed"]
    settle_times(graph, members)
    if not any(run.ready.any() for node in made for run in node.runs):
        raise UnsupportedOperator(graph, "a recurrence over the positions of a context")
    return [Value(graph.ids(node)) for node in made]


def _shape(state: Value | Constant) -> torch.Size:
    return state.shape if isinstance(state, Value) else state.tensor.shape


def _carried(graph: Graph, shape: list[int], length: int) -> Node:
    """Returns a node for a state at every position, which nothing computes yet."""
    batch, *rest = shape
    *rows, channels = rest or [1]
    rows_shape = (batch, length, *rows)
    ready, uses = graph.still(int(torch.Size(rows_shape).numel()))
    return graph.add("computed", rows_shape, channels, [ChannelRun(0, channels, ready, uses, opcode="mulc", x=1.0)])


def _before(graph: Graph, node: Node, initial: Value | Constant) -> Value:
    """Returns the state of the position before, at every position."""
    ids = graph.ids(node)
    if isinstance(initial, Value):
        given = initial.ids
    else:
        given = graph.constant_ids(initial, Value(ids[:, 0].reshape(initial.tensor.shape)))
    shifted = torch.cat([given.reshape(ids[:, :1].shape), ids[:, :-1]], 1)
    pieces, _ = graph.decode(given.reshape(-1).numpy(), 1, 1)
    if any(piece.node.kind != "constant" for piece in pieces):  # one tensor that is the initial or the last state
        shifted = graph.map("mulc", Value(shifted), x=1.0, channel=ids.dim() - 1).ids
    return Value(shifted.reshape(given.shape[0], ids.shape[1], *given.shape[1:]))


def _defined(graph: Graph, node: Node, state: Value) -> Node:
    """Makes a carried state what ``state`` is, and returns its node; where that is another's, it takes its place."""
    ids = state.ids.reshape(graph.ids(node).shape)
    owner = graph.owner(ids)
    alike = owner is not None and (owner.rows, owner.channels) == (node.rows, node.channels)
    if alike and torch.equal(ids, graph.ids(owner).reshape(ids.shape)):
        for piece in (p for other in graph.nodes[node.index :] for run in other.runs for p in run.pieces()):
            if piece.node is node:
                piece.node = owner
        node.kind = "replaced"
        return owner
    table = Table.of(graph, ids)
    runs = []
    for start, length, (stride,) in channel_runs(graph, [table]):
        pieces, constants = graph.decode(table.ids[:, start].contiguous().numpy(), stride, length)
        operand = pieces + [graph.value_piece(value, where, length) for value, where in constants]
        times = graph.still(node.rows)
        runs.append(ChannelRun(start, length, *times, opcode="mulc", operands=[operand], x=1.0))
    node.set_runs(runs)
    return node
