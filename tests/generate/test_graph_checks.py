"""Graphs verify and print themselves."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastgen.generate.compile import pipeline
from fastgen.generate.ir.graph import ChannelRun, Graph, Node, Recipe, Value
from fastgen.generate.ir.records import Place
from fastgen.generate.ir.verify_graph import GraphError, verify
from tests.generate.compiled import case
from tests.generate.small_graphs import draws_of, past, pointwise, sequence, weights

TEXT = """\
%0    input     [2x6] x 1
      [0:1] ready at steps 1..6
%1    computed  [2x6] x 4
      [0:4] ready at steps 1..5: %0[0] row -1 of 10 rows @ W[0]
%2    computed  [2x6] x 2
      [0:2] ready at steps 1..5: tanh(%1[0:2])
%3    computed  [2x6] x 2
      [0:2] ready at steps 1..5: sigmoid(%1[2:4])
%4    computed  [2x6] x 2
      [0:2] ready at steps 1..5: mul(%2[0:2], %3[0:2])
%5    computed  [2x6] x 2  gate (addc), net.py:3
      [0:2] ready at steps 1..5: addc(%4[0:2], x=0.5)
%6    computed  [2x6] x 3
      [0:3] ready at steps 1..5: %5[0:2] @ W[0..1] + bias"""


def small() -> tuple[Graph, Value]:
    graph, _, x = sequence()
    y = pointwise(graph, past(x), weights(graph, "gate", torch.randn(1, 4)))
    a = graph.map("tanh", Value(y.ids[:, :2]), channel=1)
    b = graph.map("sigmoid", Value(y.ids[:, 2:]), channel=1)
    z = graph.map("mul", a, b, channel=1)
    with graph.at(Place("gate (addc)", "net.py:3")):
        z = graph.map("addc", z, x=0.5, channel=1)
    out = pointwise(graph, z, weights(graph, "last", torch.randn(2, 3)), weights(graph, "bias", torch.randn(3)))
    return graph, out


def test_a_graph_prints_itself():
    assert str(small()[0]) == TEXT


def test_a_sound_graph_passes():
    graph, out = small()
    verify(graph, draws_of(graph, out)[0].pieces)


def test_places_are_left_where_they_were():
    graph = Graph()
    with pytest.raises(ZeroDivisionError), graph.at(Place("inner")):
        _ = 1 / 0
    assert graph.place == Place()


def first_piece(node: Node):
    return node.runs[0].pieces()[0]


def beyond_the_rows(nodes):
    first_piece(nodes[2]).rows = first_piece(nodes[2]).rows + 7


def beyond_the_channels(nodes):
    first_piece(nodes[2]).slots = first_piece(nodes[2]).slots + 3


def another_number_of_rows(nodes):
    first_piece(nodes[2]).rows = first_piece(nodes[2]).rows[:5]


def a_node_that_is_defined_later(nodes):
    first_piece(nodes[2]).node = nodes[4]


def a_node_of_another_graph(nodes):
    first_piece(nodes[2]).node = small()[0].nodes[1]


def another_length(nodes):
    first_piece(nodes[4]).length = 1


def a_row_that_is_given_twice(nodes):
    (operand,) = nodes[5].runs[0].operands
    operand.append(operand[0])


def a_channel_in_two_runs(nodes):
    nodes[2].set_runs([nodes[2].runs[0], replace(nodes[2].runs[0], slot=1, length=1)])


def a_channel_in_no_run(nodes):
    nodes[2].runs = [replace(nodes[2].runs[0], length=1)]


def runs_replaced_past_the_node(nodes):
    """``set_runs`` keeps the table of slots, an assignment does not."""
    nodes[2].runs = [replace(nodes[2].runs[0], slot=n, length=1) for n in range(2)]


def ready_too_early(nodes):
    nodes[4].runs[0].ready = np.zeros(12, np.int32)


def a_sample_forgotten(nodes):
    nodes[4].runs[0].uses = np.zeros(12, np.uint8)


def terms_and_an_operation(nodes):
    nodes[6].runs[0].opcode = "tanh"


def too_few_operands(nodes):
    nodes[4].runs[0].operands.pop()


def an_unknown_operation(nodes):
    nodes[2].runs[0].opcode = "tanhh"


def rows_beyond_the_matrix(nodes):
    nodes[6].runs[0].terms[0].weight_rows = np.array([1, 2])


def columns_beyond_the_matrix(nodes):
    nodes[6].runs[0].columns = np.array([0, 1, 3])


def a_bias_that_is_too_short(nodes):
    nodes[6].runs[0].bias = Recipe((), lambda: torch.zeros(2))


def ids_that_overlap(nodes):
    nodes[3].base -= 1


def a_kind_that_is_none(nodes):
    nodes[3].kind = "calculated"


def an_input_that_is_computed(nodes):
    nodes[0].runs = [ChannelRun(0, 1, nodes[0].runs[0].ready, nodes[0].runs[0].uses, opcode="tanh")]


WRONG: dict[Callable, str] = {
    beyond_the_rows: "beyond its 12 rows",
    beyond_the_channels: "beyond its 4 channels",
    another_number_of_rows: "has 12 rows; a piece of run [0:2] has 5",
    a_node_that_is_defined_later: "reads %4 in run [0:2], which is defined later",
    a_node_of_another_graph: "that is not in the graph",
    another_length: "has operands of",
    a_row_that_is_given_twice: "two pieces give at one row",
    a_channel_in_two_runs: "looks up another run than run [0:2]",
    a_channel_in_no_run: "channels in no run",
    runs_replaced_past_the_node: "looks up another run than run [1:2]",
    ready_too_early: "is ready before what it reads",
    a_sample_forgotten: "depends on less than what it reads",
    terms_and_an_operation: "computes run [0:3] in 2 ways",
    too_few_operands: "gives 1 operands to mul, not 2",
    an_unknown_operation: "unknown operation 'tanhh'",
    rows_beyond_the_matrix: "beyond the 2 rows of its matrix",
    columns_beyond_the_matrix: "that the matrix of 3 does not have",
    a_bias_that_is_too_short: "has a bias of 2",
    ids_that_overlap: "has ids from",
    a_kind_that_is_none: "has kind 'calculated'",
    an_input_that_is_computed: "is given, and yet computed",
}


@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_what_contradicts_itself_is_told(change):
    graph, _ = small()
    change(graph.nodes)
    with pytest.raises(GraphError, match=re.escape(WRONG[change])):
        verify(graph)


def test_a_draw_of_another_graph_is_told():
    graph, _ = small()
    other, out = small()
    with pytest.raises(GraphError, match="is read from outside"):
        verify(graph, draws_of(other, out)[0].pieces)


def test_constants_have_values_of_their_size():
    graph = Graph()
    graph.constant_node((3,), 2, Recipe((), lambda: torch.zeros(5)))
    with pytest.raises(GraphError, match="is 3 x 2; its values are 5"):
        verify(graph)


def test_passes_run_in_order_and_tell_of_it(monkeypatch):
    ran = []
    monkeypatch.setattr(pipeline, "after_pass", lambda name, graph, draws: ran.append((name, len(draws))))
    case("masked_stack").sampler(machine="reference", verify=False)
    names = "trace samples_first fold_constant_cells roll_up_loops split_channel_runs merge_sums compute_twice"
    assert ran == [(name, 1) for name in names.split()]


def test_the_pipeline_is_verified_while_tests_run(monkeypatch):
    """A pass that breaks the graph is told by its name."""

    def broken(graph) -> None:
        graph.nodes[-1].base += 1

    monkeypatch.setattr(pipeline, "split_channel_runs", broken)
    with pytest.raises(GraphError, match="after split_channel_runs: node"):
        case("masked_stack").sampler(machine="reference", verify=False)
