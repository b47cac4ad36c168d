"""What a loop over positions repeated is told from what only looks alike."""

from __future__ import annotations

import torch

from fastgen.generate.ir.graph import Recipe, Value
from fastgen.generate.ir.verify_graph import verify
from fastgen.generate.passes.needed_rows import needed_rows
from fastgen.generate.passes.repeated_nodes import repeated_nodes
from fastgen.generate.passes.roll_up_loops import roll_up_loops
from tests.generate.loop_graphs import CHANNELS, LOOPS, at, loop, matrix, product, result, stacked
from tests.generate.small_graphs import draws_of, sequence, weights


def test_the_copies_of_a_loop_come_in_the_order_of_time():
    for name in LOOPS:
        graph, _, draws, _ = loop(name)
        found = repeated_nodes(graph, needed_rows(graph, draws))
        assert found
        for members in found:
            assert len(members) in (5, 6)
            assert [node.index for node in members] == sorted(node.index for node in members)


def test_layers_that_do_not_advance_in_time_stay_apart():
    graph, _, x = sequence(CHANNELS)
    for _ in range(8):
        x = graph.map("tanh", x)
    assert repeated_nodes(graph, needed_rows(graph, [])) == []


def test_copies_with_other_weights_stay_apart():
    graph, _, x = sequence(CHANNELS)
    for t in range(6):
        product(graph, at(x, t), matrix(graph, f"w{t}", CHANNELS))
    assert repeated_nodes(graph, needed_rows(graph, [])) == []


def test_matrices_cut_from_one_parameter_in_other_ways_stay_apart():
    graph, _, x = sequence(CHANNELS)
    graph.constants["w"] = torch.randn(6, CHANNELS, CHANNELS)
    for t in range(6):
        product(graph, at(x, t), Recipe(("w",), lambda w, t=t: w[t]))
    assert repeated_nodes(graph, needed_rows(graph, [])) == []


def test_first_copies_that_belong_before_the_first_step_are_left_out():
    graph, _, x = sequence(CHANNELS, 6)
    recipe = matrix(graph, "w", CHANNELS)
    bias = weights(graph, "b", torch.randn(CHANNELS))
    padded = Value(torch.nn.functional.pad(x.ids, (3, -1)))
    copies = [graph.map("tanh", product(graph, Value(padded.ids[:, :, t : t + 1]), recipe, bias)) for t in range(8)]
    draws = draws_of(graph, product(graph, stacked(copies[2:]), recipe))
    before = result(graph, draws, 6)
    found = repeated_nodes(graph, needed_rows(graph, draws))
    assert {len(members) for members in found} == {6}  # 3 depend on no input; one of them is ready just in time
    roll_up_loops(graph, draws)
    verify(graph, draws[0].pieces)
    torch.testing.assert_close(result(graph, draws, 6), before, rtol=0, atol=1e-12)
