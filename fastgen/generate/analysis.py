"""One analysis: from a module at one event shape to its step program."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fastgen.generate.channels import Table, channel_runs
from fastgen.generate.errors import CompileError, NotCausalError
from fastgen.generate.export import Exported, export, state_of
from fastgen.generate.fuse import cut_runs
from fastgen.generate.graph import Channels, Graph, Node, Piece, Value
from fastgen.generate.lower import Lowered, Lowering
from fastgen.generate.merge import merge_sums
from fastgen.generate.nodes import halves
from fastgen.generate.orders import Order, event_grid, make_order
from fastgen.generate.schedule import DrawSite, Placed, Scheduler
from fastgen.generate.still import settle
from fastgen.generate.trace import Traced, check_finite, trace

LOOKAHEAD = 8
"""Steps of a sequence that a machine may batch when a prompt is read."""


@dataclass
class Analysis:
    """Everything that compiling found out at one event shape."""

    exported: Exported
    traced: Traced
    event_shape: tuple[int, ...]
    order: Order
    draws: list[DrawSite]
    placed: dict[Node, Placed]
    lowered: Lowered


def analyse(
    module: nn.Module, event_shape, head, order, predicts: str, adapter: Callable | None, context, dtype: torch.dtype
) -> Analysis:
    """Export ``module`` at ``event_shape``, find the schedule and lower it.

    ``context``: tensors for a batch of two, or None.
    """
    order = make_order(order, event_shape)
    shape = (2, *event_shape)
    x = torch.zeros(shape, dtype=dtype)
    exported = export(module, x, context, adapter)
    state = state_of(exported, module)
    check_finite(state, list(exported.parameters))
    shift = 1 if predicts == "next" else 0
    traced = trace(exported, state, lambda graph, example: _event_node(graph, order, event_shape, shift))
    graph = traced.graph
    parameters = head.arrange(traced.output.ids, event_shape)
    draws = _draw_sites(graph, parameters, order, event_shape)
    _check_causal(draws, order, event_shape, traced.input)
    settle(traced, order, draws)
    cut_runs(graph)
    merge_sums(graph, draws)
    placed = Scheduler(graph, order, draws).run()
    lookahead = 1 if not order.regular else min(LOOKAHEAD, order.row_length)
    lowered = Lowering(graph, order, placed, draws, traced.input, shift, lookahead).run()
    lowered.program.weights, lowered.program.constants = lowered.fill(graph.constants)
    return Analysis(exported, traced, tuple(event_shape), order, draws, placed, lowered)


def _event_node(graph: Graph, order: Order, event_shape, shift: int) -> tuple[Node, Value]:
    channels, grid = event_grid(event_shape)
    steps = order.steps + 1 - shift
    if order.name == "features":
        runs = [Channels(d, 1, np.full(2, steps[0, d], np.int32), np.array([1, 2], np.uint8)) for d in range(grid[0])]
        node = graph.add("input", (2,), grid[0], runs)
        return node, Value(graph.ids(node))
    uses = np.repeat(np.array([1, 2], np.uint8), math.prod(grid))
    runs = []
    start = 0
    for c in range(1, channels + 1):
        if c == channels or (steps[c] != steps[start]).any():
            runs.append(Channels(start, c - start, np.tile(steps[start], 2).astype(np.int32), uses))
            start = c
    node = graph.add("input", (2, *grid), channels, runs)
    ids = graph.ids(node)
    return node, Value(ids[..., 0] if len(event_shape) == 1 else ids.movedim(-1, 1))


Site = tuple[int, int, np.ndarray, Tensor]
"""First channel, channels, positions, and the ids of the head's parameters ``[positions, n]``."""


def _draw_sites(graph: Graph, parameters: Tensor, order: Order, event_shape) -> list[DrawSite]:
    """The draws, from the ids of the head's parameters ``[N, P, G, n]``.

    A draw reads runs of channels, each from one computed tensor at every position. An output that is padded or joined
    along its positions, or whose constant rows belong to no sample (positions before the batch), is copied to one.
    """
    sites = _sites(parameters, order)
    pieces = [_pieces(graph, table) for *_, table in sites]
    if None in pieces:
        _, grid = event_grid(event_shape)
        output = Value(parameters.reshape(-1, *grid, parameters[0, 0].numel()))
        copied = graph.map("mulc", output, x=1.0, channel=len(grid) + 1)
        sites = _sites(copied.ids.reshape(parameters.shape), order)
        pieces = [_pieces(graph, table) for *_, table in sites]
    return [
        DrawSite(channel0, count, positions, order.steps[channel0][positions], read)
        for (channel0, count, positions, _), read in zip(sites, pieces, strict=True)
    ]


def _sites(parameters: Tensor, order: Order) -> list[Site]:
    parameters = parameters[0]  # [P, G, n]
    groups, channels = parameters.shape[1], order.channels
    positions = np.arange(parameters.shape[0])
    if order.name == "raster-subpixel":
        if groups != channels:
            raise CompileError(
                "order 'raster-subpixel' draws one channel a step; the head draws all channels of a position at once"
            )
        tables = [(c, 1, parameters[:, c]) for c in range(channels)]
    else:
        tables = [(0, channels, parameters.reshape(parameters.shape[0], -1))]
    return [
        (channel0, count, chosen, table[torch.from_numpy(chosen)])
        for channel0, count, table in tables
        for chosen in ([positions] if order.regular else np.argsort(order.steps[channel0])[:, None])
    ]


def _pieces(graph: Graph, table: Tensor) -> list[Piece] | None:
    """The runs of channels that a draw reads; None where one of them is not one tensor with a place for every row."""
    pieces = []
    for start, length, (stride,) in channel_runs(graph, [Table(table)]):
        found, constants = graph.decode(table[:, start].contiguous().numpy(), stride, length)
        found += [graph.value_piece(value, where, length) for value, where in constants]
        if len(found) != 1 or (found[0].rows < 0).any() or not _placed(found[0]):
            return None
        pieces += found
    return pieces


def _placed(piece: Piece) -> bool:
    uses = piece.node.uses
    return piece.node.kind == "constant" or halves(uses) or bool(uses[piece.rows].all())


def check_start(traced: Traced, start: float) -> None:
    """Raises ValueError where the network looks up the event's values in a table that has no row ``start``."""
    for node in traced.graph.nodes:
        for term in [t for run in node.runs for t in run.terms or () if t.index and t.piece.node is traced.input]:
            rows = len(term.weight_rows)
            if start not in range(rows):
                allowed = f"a whole number in 0 .. {rows - 1}, the rows of {node.name}, {node.where}"
                raise ValueError(f"start must be {allowed}, got {start}")


# ---- causality


def _check_causal(draws: list[DrawSite], order: Order, event_shape, event: Node) -> None:
    for draw in draws:
        for piece in draw.pieces:
            for run in piece.source_runs():
                if piece.node.kind == "constant":
                    continue
                rows = piece.rows
                if (run.uses[rows] & 2).any():
                    raise NotCausalError(_mixing(piece, run, rows))
                late = run.ready[rows] > draw.steps
                if late.any():
                    at = int(np.argmax(late))
                    raise NotCausalError(_peeking(draw, piece, run, int(rows[at]), at, order, event_shape, event))


def _walk(
    node: Node, run: Channels, row: int, key: Callable[[Channels, int], int]
) -> tuple[list[Node], Node, int, int]:
    """Follow the dependency that maximises ``key`` back to an input; returns the path, the input, its row and slot."""
    path, slot = [], 0
    while node.kind == "computed":
        path.append(node)
        best = None
        for piece in run.pieces():
            source = int(piece.rows[row])
            if source < 0 or piece.node.kind == "constant":
                continue
            for r in piece.source_runs():
                value = key(r, source)
                if best is None or value > best[0]:
                    best = value, piece.node, r, source, int(piece.slots[row])
        if best is None:
            break
        _, node, run, row, slot = best
    return path, node, row, slot


def _layers(path: list[Node]) -> str:
    names = []
    for node in reversed(path):
        name = node.name.split(" (")[0]
        if not names or names[-1] != name:
            names.append(name)
    shown = names if len(names) <= 8 else [*names[:4], "...", *names[-3:]]
    return " -> ".join(shown)


def _mixing(piece: Piece, run: Channels, rows: np.ndarray) -> str:
    row = int(rows[np.argmax((run.uses[rows] & 2) > 0)])
    path, _, _, _ = _walk(piece.node, run, row, lambda r, source: int(r.uses[source] & 2))
    first = next((n for n in reversed(path) if any((r.uses == 3).any() for r in n.runs)), path[0])
    return f"the network mixes the samples of the batch at {first.name}, {first.where}"


def _element(order: Order, event_shape, position: int, channel: int | None) -> str:
    _, grid = event_grid(event_shape)
    at = tuple(int(i) for i in np.unravel_index(position, grid))
    return f"{at}" if channel is None or order.steps.shape[0] == 1 else f"{at}, channel {channel}"


def _peeking(
    draw: DrawSite, piece: Piece, run: Channels, row: int, at: int, order: Order, event_shape, event: Node
) -> str:
    path, _, source, slot = _walk(piece.node, run, row, lambda r, s: int(r.ready[s]))
    target = _element(order, event_shape, int(draw.positions[at]), draw.channel0)
    if order.name == "features":
        peeked = _element(order, event_shape, slot, None)
    else:
        peeked = _element(order, event_shape, source % (event.rows // 2), slot)
    offset = int(run.ready[row]) - int(draw.steps[at])
    hint = ' If output t is meant to score element t + 1, pass predicts="next".' if offset == 1 else ""
    return (
        f"the network is not causal for order {order.name!r}: the output that scores element {target} (drawn at step "
        f"{int(draw.steps[at])}) depends on element {peeked} (drawn at step {int(run.ready[row]) - 1}), "
        f"through {_layers(path)}.{hint}"
    )
