"""One analysis: from a module at one event shape to its step program."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastgen.generate.compile.inputs import advice, with_input
from fastgen.generate.errors import CompileError, NotCausalError
from fastgen.generate.frontend.context_plan import ContextPlan
from fastgen.generate.frontend.export import Exported, export, state_of
from fastgen.generate.frontend.trace import Traced, check_finite, trace
from fastgen.generate.ir.channels import Table, channel_runs
from fastgen.generate.ir.graph import Channels, Graph, Node, Piece, Value
from fastgen.generate.ir.records import halves
from fastgen.generate.lower.lowering import Lowered, Lowering
from fastgen.generate.orders import Order
from fastgen.generate.passes.fold_constant_cells import settle
from fastgen.generate.passes.merge_sums import merge_sums
from fastgen.generate.passes.split_channel_runs import cut_runs
from fastgen.generate.request import CompileRequest
from fastgen.generate.schedule.scheduler import DrawSite, Placed, Scheduler

LOOKAHEAD = 8
"""Steps of a sequence that a machine may batch when a prompt is read."""


@dataclass
class Analysis:
    """Everything that compiling found out at one event shape."""

    request: CompileRequest
    """Of the analysed length; the head has the input that the network takes."""
    exported: Exported
    traced: Traced
    plan: ContextPlan | None
    """What of the contexts runs in PyTorch at the start; None where there is no context."""
    draws: list[DrawSite]
    placed: dict[Node, Placed]
    lowered: Lowered

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.request.event_shape

    @property
    def order(self) -> Order:
        return self.request.order


def analyse(request: CompileRequest, context) -> Analysis:
    """Exports the network, finds the schedule and lowers it.

    ``context``: tensors for a batch of two, or None.
    """
    order, network, shape = request.order, request.network, (2, *request.event_shape)
    head = with_input(request.head.resolve(request.event_shape), network, shape, context)
    x = head.to_input(torch.zeros(shape, dtype=torch.int64 if head.levels else torch.float32))
    try:
        exported = export(network, x, context)
    except CompileError as error:
        if said := advice(head, network, shape, context):
            raise CompileError(f"{error}{said}") from error
        raise
    state = state_of(exported, network)
    check_finite(exported, state, {name for name, _ in network.named_parameters()})
    plan = None if context is None else ContextPlan(exported, state, context, order.grid)
    request = replace(request, head=head)
    while True:
        try:
            return _analysed(request, exported, state, plan)
        except CompileError as error:
            if plan is None or not plan.absorb(error):
                raise


def _analysed(
    request: CompileRequest, exported: Exported, state: dict[str, Tensor], plan: ContextPlan | None
) -> Analysis:
    order, head, shift = request.order, request.head, request.shift

    def event(graph: Graph, example: Tensor) -> tuple[Node, Value]:
        node, value = _event_node(graph, order, shift)
        return node, replace(value, **_input_range(head, request.start))

    traced = trace(exported, state, event, plan)
    graph = traced.graph
    try:
        parameters = head.arrange(traced.output.ids, request.event_shape)
    except ValueError as error:
        raise CompileError(str(error)) from error
    draws = _draw_sites(graph, parameters, order)
    _check_causal(draws, order, traced.input, shift, graph.remark)
    settle(traced, order, draws)
    cut_runs(graph)
    merge_sums(graph, draws)
    placed = Scheduler(graph, order, draws).run()
    lookahead = 1 if not order.regular else min(LOOKAHEAD, order.row_length)
    lowered = Lowering(graph, order, placed, draws, traced.input, shift, lookahead).run()
    lowered.program.weights, lowered.program.constants = lowered.fill(graph.constants)
    return Analysis(request, exported, traced, plan, draws, placed, lowered)


def _input_range(head, start: float) -> dict[str, float]:
    """Returns the least and the greatest number that the network can be fed."""
    if not head.levels or head.feed_raw:
        return {}
    inputs = [*head.inputs.tolist(), start]
    return {"low": min(inputs), "high": max(inputs)}


def _event_node(graph: Graph, order: Order, shift: int) -> tuple[Node, Value]:
    channels, grid = order.channels, order.grid
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
    return node, Value(ids[..., 0] if len(order.event_shape) == 1 else ids.movedim(-1, 1))


Site = tuple[int, int, np.ndarray, Tensor]
"""First channel, channels, positions, and the ids of the head's parameters ``[positions, n]``."""


def _draw_sites(graph: Graph, parameters: Tensor, order: Order) -> list[DrawSite]:
    """Returns the draws, from the ids of the head's parameters ``[N, P, G, n]``.

    A draw reads runs of channels, each from one computed tensor at every position. An output that is padded or joined
    along its positions, or whose constant rows belong to no sample (positions before the batch), is copied to one.
    """
    sites = _sites(parameters, order)
    runs = [_runs(graph, table) for *_, table in sites]
    if not all(_readable(found) for site in runs for found in site):
        output = Value(parameters.reshape(-1, *order.grid, parameters[0, 0].numel()))
        copied = graph.map("mulc", output, x=1.0, channel=len(order.grid) + 1)
        sites = _sites(copied.ids.reshape(parameters.shape), order)
        runs = [_runs(graph, table) for *_, table in sites]
    return [
        DrawSite(channel0, count, positions, order.steps[channel0][positions], [p for found in site for p in found])
        for (channel0, count, positions, _), site in zip(sites, runs, strict=True)
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


def _runs(graph: Graph, table: Tensor) -> list[list[Piece]]:
    """Returns for every run of channels the pieces that give it."""
    runs = []
    for start, length, (stride,) in channel_runs(graph, [Table(table)]):
        found, constants = graph.decode(table[:, start].contiguous().numpy(), stride, length)
        runs.append(found + [graph.value_piece(value, where, length) for value, where in constants])
    return runs


def _readable(found: list[Piece]) -> bool:
    """Whether a run of channels is one tensor, with a place for every row."""
    if len(found) != 1 or (found[0].rows < 0).any():
        return False
    uses = found[0].node.uses
    return found[0].node.kind == "constant" or halves(uses) or bool(uses[found[0].rows].all())


def check_start(traced: Traced, start: float) -> None:
    """Raises ValueError where the network looks up the event's values in a table that has no row ``start``."""
    for node in traced.graph.nodes:
        for term in [t for run in node.runs for t in run.terms or () if t.index and t.piece.node is traced.input]:
            rows = len(term.weight_rows)
            if start not in range(rows):
                allowed = f"a whole number in 0 .. {rows - 1}, the rows of {node.name}, {node.where}"
                raise ValueError(f"start must be {allowed}, got {start}")


# ---- causality


def _check_causal(draws: list[DrawSite], order: Order, event: Node, shift: int, remark: str) -> None:
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
                    late_by = int(run.ready[rows[at]]) - int(draw.steps[at])
                    peek = _peeking(draw, piece, run, int(rows[at]), at, order, event, shift)
                    raise NotCausalError(peek + _remedy(order, shift, late_by) + remark)


def _walk(
    node: Node, run: Channels, row: int, key: Callable[[Channels, int], int]
) -> tuple[list[Node], Node, int, int]:
    """Follows the dependency that maximises ``key`` back to an input; returns the path, the input, its row and slot."""
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


def _element(order: Order, position: int, channel: int | None) -> str:
    at = order.coordinates(position)
    return f"{at}" if channel is None or order.steps.shape[0] == 1 else f"{at}, channel {channel}"


def _peeking(
    draw: DrawSite, piece: Piece, run: Channels, row: int, at: int, order: Order, event: Node, shift: int
) -> str:
    path, _, source, slot = _walk(piece.node, run, row, lambda r, s: int(r.ready[s]))
    target = _element(order, int(draw.positions[at]), draw.channel0)
    if order.name == "features":
        peeked = _element(order, slot, None)
    else:
        peeked = _element(order, source % (event.rows // 2) - shift, slot)
    seen = (
        "itself"
        if peeked == target and order.channels == 1
        else f"element {peeked} (drawn at step {int(run.ready[row]) - 1})"
    )
    return (
        f"the network is not causal for order {order.name!r}: the output that scores element {target} (drawn at step "
        f"{int(draw.steps[at])}) depends on {seen}, through {_layers(path)}."
    )


def _remedy(order: Order, shift: int, late_by: int) -> str:
    """Returns advice about an output that sees an element drawn ``late_by - 1`` steps after its own."""
    if order.name == "features":
        return " The output of a feature may depend on the features before it, not on itself: mask the weights so."
    if shift:
        return (
            ' With predicts="next" the network reads the start value and then the elements, each one position late. An '
            f"output may read the input at its own position and before; this one reads {late_by} further on. If output "
            't is meant to score element t, pass predicts="same".'
        )
    said = []
    if late_by == 1 and order.name in ("time", "raster"):
        said.append('If output t is meant to score element t + 1, pass predicts="next".')
    if late_by == 1 and order.name == "raster" and order.channels > 1:
        said.append('If the channels of a pixel follow one another, pass order="raster-subpixel".')
    return "".join(" " + words for words in said)
