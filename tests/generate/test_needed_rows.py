"""The rows that the draws depend on are found."""

from __future__ import annotations

import numpy as np

from fastgen.generate.passes.needed_rows import needed_rows
from tests.generate.loop_graphs import CHANNELS, at
from tests.generate.small_graphs import draws_of, sequence


def test_rows_that_no_draw_depends_on_are_not_needed():
    graph, _, x = sequence(CHANNELS, 6)
    first, last = graph.map("tanh", x), graph.map("tanh", at(x, 5))
    draws = draws_of(graph, graph.map("exp", at(first, 2)), 1)
    needed = needed_rows(graph, draws)
    of_first, of_last = (needed[graph.owner(value.ids)] for value in (first, last))
    assert not of_last.any()
    assert np.flatnonzero(of_first).tolist() == [2]  # of the first sample
