"""Terms that read neighbouring channels: which become one, and that none changes what is computed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastgen.generate.ir.graph import Graph, Recipe, Value
from fastgen.generate.ir.verify_graph import verify
from fastgen.generate.passes.join_terms import join_terms
from tests.generate.small_graphs import STEPS, draws_of, past, sequence, values, weights


def channel_by_channel(graph: Graph, value: Value, matrix: Recipe) -> Value:
    """As a dense layer reads units that become known one by one: ``[2, C, steps]`` to ``[2, D, steps]``, C terms."""
    ids = value.ids.movedim(1, -1)
    firsts = ids.reshape(-1, ids.shape[-1]).T.contiguous().numpy()
    inputs = [(first, 1, 1, np.array([row]), False) for row, first in enumerate(firsts)]
    return Value(graph.contract(ids.shape[:-1], inputs, matrix, None).ids.movedim(-1, 1))


def masked_layers(matrix: Tensor) -> tuple[Graph, Value]:
    """Two masked dense layers, and one that sees all units."""
    graph, _, event = sequence(channels=4)
    value = event
    for number in range(2):
        value = channel_by_channel(graph, value, weights(graph, f"triangle {number}", matrix.triu()))
    return graph, channel_by_channel(graph, value, weights(graph, "dense", matrix))


def test_a_unit_that_sees_several_runs_of_a_node_has_one_term():
    graph, output = masked_layers(torch.randn(4, 4))
    assert [len(run.terms) for run in graph.nodes[2].runs] == [1, 2, 3, 4]
    join_terms(graph)
    for node in graph.nodes[1:]:
        assert all(len(run.terms) == 1 for run in node.runs)
    assert [run.terms[0].piece.length for run in graph.nodes[2].runs] == [1, 2, 3, 4]
    assert graph.nodes[2].runs[3].terms[0].piece.source_numbers() == [0, 1, 2, 3]
    verify(graph, [piece for draw in draws_of(graph, output) for piece in draw.pieces])


def test_what_is_computed_stays_the_same():
    torch.manual_seed(0)
    graph, _ = masked_layers(torch.randn(4, 4))
    x = torch.randn(2, STEPS, 4, dtype=torch.float64)
    before = values(graph, x)
    join_terms(graph)
    after = values(graph, x)
    for node in graph.nodes:
        torch.testing.assert_close(after[node], before[node], rtol=0, atol=1e-12)


def test_terms_of_other_rows_or_other_channels_stay_apart():
    graph, _, event = sequence(channels=3)
    delayed = torch.cat([event.ids[:, :1], past(event).ids[:, 1:2]], 1)
    channel_by_channel(graph, Value(delayed), weights(graph, "rows", torch.randn(2, 3)))
    channel_by_channel(graph, Value(event.ids[:, [0, 2]]), weights(graph, "channels", torch.randn(2, 3)))
    channel_by_channel(graph, Value(event.ids[:, [1, 0]]), weights(graph, "order", torch.randn(2, 3)))
    join_terms(graph)
    assert [len(run.terms) for node in graph.nodes[1:] for run in node.runs] == [2, 2, 2]
