"""Copies of nodes that a loop over positions made become one node each; what is computed stays the same."""

from __future__ import annotations

import pytest
import torch

from fastgen.generate.frontend.rules.contraction import contract_last
from fastgen.generate.ir.graph import Graph, Recipe, Value
from fastgen.generate.ir.loops import loops_of
from fastgen.generate.ir.verify_graph import verify
from fastgen.generate.passes.repeated_nodes import repeated_nodes
from fastgen.generate.passes.roll_up_loops import roll_up_loops
from tests.generate.small_graphs import draws_of, scalar, sequence, values, weights

CHANNELS = 3


def at(value: Value, t: int) -> Value:
    return Value(value.ids[:, :, t : t + 1])


def product(graph: Graph, x: Value, recipe: Recipe, bias: Recipe | None = None) -> Value:
    """A product over the channels ``[2, C, steps]``."""
    return Value(contract_last(graph, Value(x.ids.movedim(1, -1)), recipe, bias).ids.movedim(-1, 1))


def stacked(parts: list[Value]) -> Value:
    return Value(torch.cat([part.ids for part in parts], 2))


def matrix(graph: Graph, name: str, rows: int) -> Recipe:
    return weights(graph, name, torch.randn(rows, CHANNELS, generator=torch.Generator().manual_seed(rows)))


def plain(graph: Graph, x: Value, steps: int) -> list[Value]:
    """``h = tanh(W [x_t, h])`` from zeros."""
    recipe = matrix(graph, "w", 2 * CHANNELS)
    h, found = Value(torch.zeros_like(at(x, 0).ids)), []
    for t in range(steps):
        h = graph.map("tanh", product(graph, Value(torch.cat([at(x, t).ids, h.ids], 1)), recipe))
        found.append(h)
    return found


def other_start(graph: Graph, x: Value, steps: int) -> list[Value]:
    """The state begins as a product that the loop has not; its matrix meets this state and the loop's own."""
    recipe = matrix(graph, "w", 2 * CHANNELS)
    h, found = product(graph, at(x, 0), matrix(graph, "first", CHANNELS)), []
    for t in range(steps):
        h = graph.map("tanh", product(graph, Value(torch.cat([at(x, t).ids, h.ids], 1)), recipe))
        found.append(h)
    return found


def constants(graph: Graph, x: Value, steps: int) -> list[Value]:
    """Another constant, and another number, at every step."""
    h, found = graph.map("tanh", at(x, 0)), []
    for t in range(steps):
        h = graph.map("add", graph.map("mul", h, scalar(0.5 + t)), graph.map("mulc", at(x, t), x=1.0 + t))
        found.append(h)
    return found


def two_states(graph: Graph, x: Value, steps: int) -> list[Value]:
    """Two nodes of one kind in every iteration, each reading the other's last one."""
    a, b, found = graph.map("tanh", at(x, 0)), graph.map("sigmoid", at(x, 0)), []
    for t in range(steps):
        a, b = graph.map("tanh", graph.map("add", b, at(x, t))), graph.map("tanh", graph.map("mul", a, at(x, t)))
        found.append(graph.map("add", a, b))
    return found


LOOPS = {make.__name__: make for make in (plain, other_start, constants, two_states)}


def loop(name: str, steps: int = 6):
    graph, event, x = sequence(CHANNELS, steps, shift=1)
    out = product(graph, stacked(LOOPS[name](graph, x, steps)), matrix(graph, "out", CHANNELS))
    return graph, event, draws_of(graph, out, steps), out


def result(graph: Graph, draws, steps: int) -> torch.Tensor:
    event = torch.randn(2, steps, CHANNELS, generator=torch.Generator().manual_seed(1))
    return values(graph, event)[draws[0].pieces[0].node]


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


def test_layers_that_do_not_advance_in_time_stay_apart():
    graph, _, x = sequence(CHANNELS)
    for _ in range(8):
        x = graph.map("tanh", x)
    assert repeated_nodes(graph) == []
    before = len(graph.nodes)
    roll_up_loops(graph, draws_of(graph, x))
    assert len(graph.nodes) == before


def test_copies_with_other_weights_stay_apart():
    graph, _, x = sequence(CHANNELS)
    for t in range(6):
        product(graph, at(x, t), matrix(graph, f"w{t}", CHANNELS))
    assert repeated_nodes(graph) == []


def test_matrices_cut_from_one_parameter_in_other_ways_stay_apart():
    graph, _, x = sequence(CHANNELS)
    graph.constants["w"] = torch.randn(6, CHANNELS, CHANNELS)
    for t in range(6):
        product(graph, at(x, t), Recipe(("w",), lambda w, t=t: w[t]))
    assert repeated_nodes(graph) == []


def test_first_copies_that_belong_before_the_first_step_are_left_out():
    graph, _, x = sequence(CHANNELS, 6)
    recipe = matrix(graph, "w", CHANNELS)
    bias = weights(graph, "b", torch.randn(CHANNELS))
    padded = Value(torch.nn.functional.pad(x.ids, (3, -1)))
    copies = [graph.map("tanh", product(graph, Value(padded.ids[:, :, t : t + 1]), recipe, bias)) for t in range(8)]
    draws = draws_of(graph, product(graph, stacked(copies[2:]), recipe))
    before = result(graph, draws, 6)
    found = repeated_nodes(graph)
    assert {len(members) for members in found} == {6}  # 3 depend on no input; one of them is ready just in time
    roll_up_loops(graph, draws)
    verify(graph, draws[0].pieces)
    torch.testing.assert_close(result(graph, draws, 6), before, rtol=0, atol=1e-12)
