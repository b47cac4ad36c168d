"""The draws, and the places of their parameters in the network's output."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fastgen.generate.errors import CompileError
from fastgen.generate.ir.channels import Table, channel_runs
from fastgen.generate.ir.graph import Graph, Piece, Value
from fastgen.generate.ir.records import halves
from fastgen.generate.orders import Order
from fastgen.generate.schedule.scheduler import DrawSite

Site = tuple[int, int, np.ndarray, Tensor]
"""First channel, channels, positions, and the ids of the head's parameters ``[positions, n]``."""


def draw_sites(graph: Graph, parameters: Tensor, order: Order, prefix: int) -> list[DrawSite]:
    """Returns the draws, from the ids of the head's parameters ``[N, P, G, n]``; none of the first ``prefix`` steps.

    A draw reads runs of channels, each from one computed tensor at every position. An output that is padded or joined
    along its positions, or whose constant rows belong to no sample (positions before the batch), is copied to one.
    """
    sites = _sites(parameters, order, prefix)
    runs = [_runs(graph, table) for *_, table in sites]
    if not all(_readable(found) for site in runs for found in site):
        output = Value(parameters.reshape(-1, *order.grid, parameters[0, 0].numel()))
        copied = graph.map("mulc", output, x=1.0, channel=len(order.grid) + 1)
        sites = _sites(copied.ids.reshape(parameters.shape), order, prefix)
        runs = [_runs(graph, table) for *_, table in sites]
    return [
        DrawSite(channel0, count, positions, order.steps[channel0][positions], [p for found in site for p in found])
        for (channel0, count, positions, _), site in zip(sites, runs, strict=True)
    ]


def _sites(parameters: Tensor, order: Order, prefix: int) -> list[Site]:
    parameters = parameters[0]  # [P, G, n]
    coupled = order.channels // parameters.shape[1]
    positions = np.arange(prefix, parameters.shape[0])
    if order.regular:
        sites = [(channel0, count, positions) for channel0, count in order.channel_runs]
    else:
        sites = [(channel0, count, np.array([at])) for draws in order.draws for channel0, count, at in draws]
    if any(channel0 % coupled or count % coupled for channel0, count, _ in sites):
        rule = "one channel a step" if order.by_channel else "channels of a position at several steps"
        most = "all" if coupled == order.channels else f"{coupled}"
        raise CompileError(f"order {order.name!r} draws {rule}; the head draws {most} channels of a position at once")
    return [
        (channel0, count, chosen, parameters[chosen, channel0 // coupled : (channel0 + count) // coupled].flatten(1))
        for channel0, count, chosen in sites
    ]


def _runs(graph: Graph, table: Tensor) -> list[list[Piece]]:
    """Returns for every run of channels the pieces that give it."""
    runs = []
    for start, length, (stride,) in channel_runs(graph, [Table(table)]):
        found, constants = graph.decode(table[:, start].contiguous().numpy(), stride, length)
        graph.padding_only |= not found
        runs.append(found + [graph.value_piece(value, where, length) for value, where in constants])
    return runs


def _readable(found: list[Piece]) -> bool:
    """Whether a run of channels is one tensor, with a place for every row."""
    if len(found) != 1 or (found[0].rows < 0).any():
        return False
    uses = found[0].node.uses
    return found[0].node.kind == "constant" or halves(uses) or bool(uses[found[0].rows].all())
