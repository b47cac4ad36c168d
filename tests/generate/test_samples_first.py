"""Rows of nodes are ordered by samples, whatever the layout of the network's tensors."""

from __future__ import annotations

import numpy as np
import torch

from fastgen.generate.frontend.rules.contraction import contract_last
from fastgen.generate.ir.graph import Value
from fastgen.generate.ir.records import halves
from fastgen.generate.ir.verify_graph import verify
from fastgen.generate.passes.samples_first import samples_first
from tests.generate.small_graphs import draws_of, past, sequence, values, weights

CHANNELS, STEPS = 3, 6


def sequence_first():
    """Two products of tensors ``[T, N, C]``, whose first cells depend on no input; the event in its own layout."""
    graph, _, x = sequence(CHANNELS, STEPS)
    recipe = weights(graph, "w", torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(0)))
    inner = contract_last(graph, Value(past(x, 2).ids.permute(2, 0, 1)), recipe)
    outer = contract_last(graph, graph.map("tanh", inner), recipe)
    draws = draws_of(graph, Value(outer.ids.permute(1, 2, 0)), STEPS)
    draws[0].pieces[0].rows = np.arange(0, 2 * STEPS, 2, dtype=np.int32)  # of the first sample, in this layout
    return graph, draws


def test_every_row_has_a_sample_and_its_value():
    graph, draws = sequence_first()
    event = torch.randn(2, STEPS, CHANNELS, generator=torch.Generator().manual_seed(1))
    piece = draws[0].pieces[0]
    assert not halves(piece.node.uses)
    before = values(graph, event)[piece.node][piece.rows]
    samples_first(graph, draws)
    verify(graph, [piece])
    assert all(halves(node.uses) for node in graph.nodes)
    assert all(node.rows_shape == (2, STEPS) for node in graph.nodes if node.kind == "computed")
    assert piece.rows.tolist() == list(range(STEPS))
    torch.testing.assert_close(values(graph, event)[piece.node][piece.rows], before, rtol=0, atol=0)


def test_rows_in_order_stay_as_they_are():
    graph, _, x = sequence(CHANNELS, STEPS)
    out = graph.map("tanh", past(x, 2))
    draws = draws_of(graph, out, STEPS)
    before = [run.pieces()[0].rows.copy() for node in graph.nodes for run in node.runs if run.pieces()]
    samples_first(graph, draws)
    after = [run.pieces()[0].rows for node in graph.nodes for run in node.runs if run.pieces()]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_network_that_mixes_samples_stays_as_it_is():
    graph, _, x = sequence(CHANNELS, STEPS)
    mixed = graph.map("add", x, Value(x.ids.flip(0)))
    node = graph.nodes[-1]
    samples_first(graph, draws_of(graph, mixed, STEPS))
    assert node.rows_shape == (2, STEPS)
    assert (node.uses == 3).all()
