"""Copies of nodes that a loop over positions made become one node each; what is computed stays the same."""

from __future__ import annotations

import pytest
import torch

from fastgen.generate.ir.loops import loops_of
from fastgen.generate.ir.verify_graph import verify
from fastgen.generate.passes.roll_up_loops import roll_up_loops
from tests.generate.loop_graphs import LOOPS, loop, result


@pytest.mark.parametrize("name", LOOPS)
def test_every_value_stays_what_it_was(name):
    graph, _, draws, _ = loop(name)
    before = result(graph, draws, 6)
    roll_up_loops(graph, draws)
    verify(graph, draws[0].pieces)
    torch.testing.assert_close(result(graph, draws, 6), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LOOPS)
def test_the_number_of_nodes_does_not_grow_with_the_steps(name):
    counts = []
    for steps in (6, 11):
        graph, _, draws, _ = loop(name, steps)
        roll_up_loops(graph, draws)
        counts.append(sum(node.kind == "computed" for node in graph.nodes))
        assert [len(members) for members in loops_of(graph) if members[0].loop] != []
    assert counts[0] == counts[1] < 12


def test_terms_that_meet_the_same_weights_become_one():
    graph, _, draws, _ = loop("other_start")
    roll_up_loops(graph, draws)
    for node in graph.nodes:
        for run in node.runs:
            rows = [term.weight_rows.tobytes() for term in run.terms or ()]
            assert len(rows) == len(set(rows))


def test_different_constants_become_rows_of_one():
    graph, _, draws, _ = loop("constants")
    roll_up_loops(graph, draws)
    read = {piece.node for node in graph.nodes for run in node.runs for piece in run.pieces()}
    tables = [node.values(graph.constants).flatten().tolist() for node in read if node.kind == "constant"]
    assert sorted(map(tuple, tables)) == [tuple(0.5 + t for t in range(6)), tuple(1.0 + t for t in range(6))]
