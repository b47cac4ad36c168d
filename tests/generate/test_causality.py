"""The check of causality on graphs of a few nodes: what passes, and the words for what does not."""

from __future__ import annotations

import re

import pytest
import torch

from fastgen.generate.errors import NotCausalError
from fastgen.generate.ir.graph import Graph, Node, Value
from fastgen.generate.ir.records import Place
from fastgen.generate.orders import make_order
from fastgen.generate.passes.causality import check_causal
from tests.generate.small_graphs import STEPS, draws_of, past, pointwise, sequence, weights

ORDER = make_order("time", (STEPS,))


def network(distance: int, shift: int = 0) -> tuple[Graph, Node, Value]:
    """Two layers; output t depends on the input ``distance`` steps before it."""
    graph, event, x = sequence(shift=shift)
    with graph.at(Place("first (conv1d)", "net.py:1")):
        y = pointwise(graph, past(x, distance) if distance else x, weights(graph, "first", torch.randn(1, 4)))
    with graph.at(Place("act (tanh)", "net.py:2")):
        y = graph.map("tanh", y, channel=1)
    with graph.at(Place("last (conv1d)", "net.py:3")):
        y = pointwise(graph, y, weights(graph, "last", torch.randn(4, 2)))
    return graph, event, y


def check(graph: Graph, event: Node, out: Value, shift: int = 0, remark: str = "") -> None:
    check_causal(draws_of(graph, out), ORDER, event, shift, remark)


@pytest.mark.parametrize("distance", [1, 2, STEPS - 1])
def test_outputs_of_earlier_elements_pass(distance):
    check(*network(distance))


def test_an_output_that_depends_on_its_own_element_is_told_with_its_path():
    said = (
        "element (0,) (drawn at step 0) depends on itself, through first -> act -> last. If output t is meant to score"
    )
    with pytest.raises(NotCausalError, match=re.escape(said)):
        check(*network(0))


def test_an_output_that_depends_on_a_later_element_is_told_which():
    graph, event, out = network(1)
    ahead = Value(torch.nn.functional.pad(out.ids, (-3, 3)))
    mixed = pointwise(graph, graph.map("tanh", ahead, channel=1), weights(graph, "mix", torch.randn(2, 2)))
    with pytest.raises(NotCausalError, match=r"element \(0,\).*depends on element \(2,\) \(drawn at step 2\)"):
        check(graph, event, mixed)


def test_what_the_refusal_adds_is_said_last():
    with pytest.raises(NotCausalError, match=r" Masks are off$"):
        check(*network(0), remark=" Masks are off")


def test_an_input_that_is_one_position_late_is_read_as_such():
    """With predicts="next" the input at t is element t - 1: reading it is causal, and the remedy is another one."""
    check(*network(0, shift=1), shift=1)
    with pytest.raises(NotCausalError, match=r'this one reads 1 further on.*pass predicts="same"'):
        check(*network(-1, shift=1), shift=1)


def test_outputs_that_mix_the_samples_are_told_by_the_layer():
    graph, event, x = sequence()
    with graph.at(Place("swap (flip)", "net.py:7")):
        swapped = graph.map("tanh", Value(past(x).ids.flip(0)), channel=1)
        mixed = graph.map("add", past(x), swapped, channel=1)
    with pytest.raises(NotCausalError, match=r"mixes the samples of the batch at swap \(flip\), net.py:7"):
        check(graph, event, mixed)
