"""Random levels and contexts for the self-check."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgen.generate.compiled_network import CompiledNetwork

_LEAST = 64
_MOST_ROWS = 8
_MOST_NUMBERS = 1 << 22
"""Levels x elements of all rows; every comparison passes over so many float64 numbers several times."""


def check_rows(network: CompiledNetwork, shape: tuple[int, ...]) -> int:
    """Returns a number of events in which every level occurs: eight at most, fewer where a head reads many numbers of
    each, two where there is a context."""
    size = math.prod(shape)
    rows = min(
        -(-max(network.head.levels, _LEAST) // size), _MOST_ROWS, _MOST_NUMBERS // (size * network.head.levels + 1)
    )
    return max(rows, 1 if network.request.layout is None else 2)


def random_contexts(
    network: CompiledNetwork, rows: int, generator: torch.Generator, positions: int | None = None
) -> list[Tensor]:
    """Contexts like the example's, of so many positions, by default of as many.

    Floats are normal, with the mean and the deviation of the example (1, where it is constant). Integers are rows of
    the table that they are looked up in, else numbers that occur in the example.
    """
    made, layout = [], network.request.layout
    leaves = [] if layout is None else layout.leaves
    if layout is not None and positions is not None:
        leaves = layout.resized(leaves, positions)
    for number, leaf in enumerate(leaves):
        shape = (rows, *leaf.shape[1:])
        if leaf.is_floating_point():
            values = leaf.detach().double()
            spread = float(values.std()) if leaf.numel() > 1 else 0.0
            drawn = values.mean() + (spread or 1.0) * torch.randn(shape, generator=generator, dtype=torch.float64)
            made.append(drawn.to(leaf.dtype))
            continue
        table = _table_rows(network, number)
        if table and leaf.dtype != torch.bool:
            made.append(torch.randint(0, table, shape, generator=generator).to(leaf.dtype))
        else:
            chosen = torch.randint(0, leaf.numel(), shape, generator=generator)
            made.append(leaf.detach().reshape(-1)[chosen])
    return made


def _table_rows(network: CompiledNetwork, number: int) -> int:
    """Rows of the smallest table that a context's integers choose from; 0 where they choose from none."""
    traced = network.compiled.analysis.traced
    runs = [run for node in traced.graph.nodes for run in node.runs]
    terms = [t for run in runs for t in run.terms or () if t.index and t.piece.node.kind == "context"]
    return min((len(t.weight_rows) for t in terms if t.piece.node.context == number), default=0)
