"""Channel runs are cut where elementwise readers are, and compute what they computed."""

from __future__ import annotations

import torch

from fastgen.generate.ir.graph import Graph, Node, Value
from fastgen.generate.ir.verify_graph import verify
from fastgen.generate.passes.split_channel_runs import split_channel_runs
from tests.generate.small_graphs import STEPS, past, pointwise, sequence, values, weights

EVENT = torch.randn(2, STEPS, 1, generator=torch.Generator().manual_seed(0))


def gated() -> tuple[Graph, dict[str, Node]]:
    """``tanh(y[:3]) * sigmoid(y[3:])`` of a contraction y with six columns, summed to a residual, and contracted."""
    graph, _, x = sequence()
    y = pointwise(graph, past(x), weights(graph, "gate", torch.randn(1, 6)))
    a = graph.map("tanh", Value(y.ids[:, :3]), channel=1)
    b = graph.map("sigmoid", Value(y.ids[:, 3:]), channel=1)
    z = graph.map("mul", a, b, channel=1)
    last = pointwise(graph, z, weights(graph, "last", torch.randn(3, 2)))
    assert last.shape == (2, 2, STEPS)
    names = ("event", "gate", "tanh", "sigmoid", "mul", "last")
    return graph, dict(zip(names, graph.nodes, strict=True))


def slots(node: Node) -> list[tuple[int, int]]:
    return [(run.slot, run.length) for run in node.runs]


def test_a_gate_cuts_its_contraction_in_two_equal_parts():
    graph, nodes = gated()
    assert slots(nodes["gate"]) == [(0, 6)]
    split_channel_runs(graph)
    verify(graph)
    assert slots(nodes["gate"]) == [(0, 3), (3, 3)]
    assert [run.columns.tolist() for run in nodes["gate"].runs] == [[0, 1, 2], [3, 4, 5]]
    assert nodes["gate"].run_of_slot.tolist() == [0, 0, 0, 1, 1, 1]
    for name in ("tanh", "sigmoid", "mul", "last"):
        assert len(nodes[name].runs) == 1, name


def test_values_are_what_they_were():
    graph, nodes = gated()
    before = values(graph, EVENT)[nodes["last"]]
    split_channel_runs(graph)
    assert torch.equal(values(graph, EVENT)[nodes["last"]], before)


def test_a_second_run_of_the_pass_changes_nothing():
    graph, _ = gated()
    split_channel_runs(graph)
    before = [(node, list(node.runs)) for node in graph.nodes]
    split_channel_runs(graph)
    assert [(node, node.runs) for node in graph.nodes] == before


def test_cuts_travel_through_a_chain_to_its_producer_and_its_readers():
    """A half of the channels is read at the end of a chain: all of the chain is cut there."""
    graph, _, x = sequence()
    y = pointwise(graph, past(x), weights(graph, "first", torch.randn(1, 4)))
    chain = graph.map("tanh", graph.map("sigmoid", y, channel=1), channel=1)
    graph.map("tanh", Value(chain.ids[:, :1]), channel=1)
    split_channel_runs(graph)
    verify(graph)
    for node in graph.nodes[1:4]:
        assert slots(node) == [(0, 1), (1, 3)], node.index


def test_a_reduction_stays_whole():
    graph, _, x = sequence()
    y = pointwise(graph, past(x), weights(graph, "first", torch.randn(1, 4)))
    graph.map("sum", y, x=4.0, channel=1)
    graph.map("tanh", Value(y.ids[:, :2]), channel=1)
    split_channel_runs(graph)
    verify(graph)
    assert slots(graph.nodes[1]) == [(0, 2), (2, 2)]
    assert slots(graph.nodes[2]) == [(0, 4)]


def test_a_reader_at_another_row_cuts_nothing():
    """It cannot be fused behind the contraction: nothing is gained by equal lanes."""
    graph, _, x = sequence()
    y = pointwise(graph, past(x), weights(graph, "first", torch.randn(1, 4)))
    graph.map("tanh", past(Value(y.ids[:, :2])), channel=1)
    split_channel_runs(graph)
    verify(graph)
    assert slots(graph.nodes[1]) == [(0, 4)]
