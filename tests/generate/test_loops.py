"""Loops of nodes: their order, their times, and what is no loop."""

from __future__ import annotations

import numpy as np
import pytest

from fastgen.generate.ir.graph import ChannelRun, Piece
from fastgen.generate.ir.loops import loops_of, order_loops, settle_times
from fastgen.generate.ir.verify_graph import GraphError, verify
from tests.generate.small_graphs import STEPS, sequence


def recurrence(distance: int = 1):
    """``a[t] = x[t] + b[t - distance]``, ``b = tanh(a)``, ``c = tanh(x)``, added in another order."""
    graph, event, x = sequence(shift=1)
    rows = np.arange(2 * STEPS, dtype=np.int32)
    slots = np.zeros(2 * STEPS, np.int32)
    before = np.where(rows % STEPS >= distance, rows - distance, -1).astype(np.int32)
    b = graph.add("computed", (2, STEPS), 1, [ChannelRun(0, 1, *graph.still(2 * STEPS), opcode="tanh")])
    c = graph.map("tanh", x)
    a = graph.add("computed", (2, STEPS), 1, [ChannelRun(0, 1, *graph.still(2 * STEPS), opcode="add")])
    a.runs[0].operands = [[Piece(event, rows, slots, 1, 1)], [Piece(b, before, slots, 1, 1)]]
    b.runs[0].operands = [[Piece(a, rows, slots, 1, 1)]]
    return graph, a, b, graph.nodes[2], c


def test_a_loop_s_nodes_lie_side_by_side_and_others_by_themselves():
    graph, a, b, c, _ = recurrence()
    settle_times(graph, [a, b])
    order_loops(graph, {node: node is b for node in graph.nodes})
    assert [len(members) for members in loops_of(graph) if members[0].loop] == [2]
    assert graph.nodes.index(b) == graph.nodes.index(a) + 1
    assert (a.loop, b.loop, c.loop) == (1, 1, 0)
    verify(graph)


@pytest.mark.parametrize("distance", [1, 2])
def test_times_are_the_least_that_follow_from_what_is_read(distance):
    graph, a, b, *_ = recurrence(distance)
    settle_times(graph, [a, b])
    for node in (a, b):
        assert node.runs[0].ready.tolist() == list(range(STEPS)) * 2
        assert node.runs[0].uses.tolist() == [1] * STEPS + [2] * STEPS


def test_a_cell_that_depends_on_itself_is_told():
    graph, a, b, *_ = recurrence(distance=0)
    settle_times(graph, [a, b])
    order_loops(graph)
    with pytest.raises(GraphError, match="has cells that depend on themselves"):
        verify(graph)


def test_a_node_that_is_replaced_is_left_out():
    graph, a, b, c, _ = recurrence()
    settle_times(graph, [a, b])
    c.kind = "replaced"
    order_loops(graph)
    assert c not in graph.nodes
    verify(graph)
