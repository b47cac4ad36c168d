"""One analysis: from a module at one event shape to its step program."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastgen.generate.compile.draw_sites import draw_sites
from fastgen.generate.compile.inputs import advice, with_input
from fastgen.generate.errors import CompileError
from fastgen.generate.frontend.context_plan import ContextPlan
from fastgen.generate.frontend.export import Exported, export, state_of
from fastgen.generate.frontend.trace import Traced, check_finite, trace
from fastgen.generate.ir.graph import ChannelRun, Graph, Node, Value
from fastgen.generate.ir.loops import order_loops
from fastgen.generate.lower.lowering import Lowered, Lowering
from fastgen.generate.orders import Order
from fastgen.generate.passes.causality import check_causal
from fastgen.generate.passes.compute_twice import compute_twice
from fastgen.generate.passes.fold_constant_cells import fold_constant_cells
from fastgen.generate.passes.join_terms import join_terms
from fastgen.generate.passes.merge_sums import merge_sums
from fastgen.generate.passes.roll_up_loops import roll_up_loops
from fastgen.generate.passes.samples_first import samples_first
from fastgen.generate.passes.split_channel_runs import split_channel_runs
from fastgen.generate.request import CompileRequest
from fastgen.generate.schedule.rings import lookahead_of
from fastgen.generate.schedule.scheduler import DrawSite, Placed, Scheduler


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
    """Runs the passes, in order: from an exported graph to its program."""
    order, head, shift = request.order, request.head, request.shift

    def event(graph: Graph, example: Tensor) -> tuple[Node, Value]:
        graph.grid, graph.prefix = tuple(order.grid), request.prefix
        node, value = _event_node(graph, order, shift)
        return node, replace(value, **_input_range(head, request.start))

    traced = trace(exported, state, event, plan)
    graph = traced.graph
    try:
        parameters = head.arrange(traced.output.ids, request.event_shape)
    except ValueError as error:
        raise CompileError(str(error)) from error
    with graph.at(traced.place):
        draws = draw_sites(graph, parameters, order, request.prefix)
    order_loops(graph)
    _ran("trace", graph, draws)

    samples_first(graph, draws)
    _ran("samples_first", graph, draws)

    check_causal(draws, order, traced.input, shift, graph.remark)

    traced.folded += fold_constant_cells(graph, order, draws)
    _ran("fold_constant_cells", graph, draws)

    if order.regular:
        roll_up_loops(graph, draws)
        _ran("roll_up_loops", graph, draws)

    split_channel_runs(graph)
    _ran("split_channel_runs", graph, draws)

    merge_sums(graph, draws)
    _ran("merge_sums", graph, draws)

    if not order.regular:
        join_terms(graph)
        _ran("join_terms", graph, draws)

    placed = _scheduled(graph, order, draws)
    _ran("compute_twice", graph, draws)

    lookahead = lookahead_of(graph, order)
    lowered = Lowering(graph, order, placed, draws, traced.input, shift, lookahead).run()
    lowered.program.weights, lowered.program.constants = lowered.fill(graph.constants)
    return Analysis(request, exported, traced, plan, draws, placed, lowered)


def _scheduled(graph: Graph, order: Order, draws: list[DrawSite]) -> dict[Node, Placed]:
    """Returns the schedule; a node that none suits is computed twice, where that helps."""
    while True:
        scheduler = Scheduler(graph, order, draws)
        try:
            return scheduler.run()
        except CompileError:
            if scheduler.stuck is None or not compute_twice(graph, scheduler.placed, scheduler.stuck):
                raise


after_pass: Callable[[str, Graph, list[DrawSite]], None] | None = None
"""Called after every pass with its name, the graph and the draws; None: nothing is. Tests verify the graph here."""


def _ran(name: str, graph: Graph, draws: list[DrawSite]) -> None:
    if after_pass is not None:
        after_pass(name, graph, draws)


def _input_range(head, start: float) -> dict[str, float]:
    """Returns the least and the greatest number that the network can be fed."""
    if not head.levels or head.feed_raw:
        return {}
    inputs = [*head.inputs.tolist(), start]
    return {"low": min(inputs), "high": max(inputs)}


def _event_node(graph: Graph, order: Order, shift: int) -> tuple[Node, Value]:
    channels, grid = order.channels, order.grid
    steps = order.steps + 1 - shift
    steps = np.where(steps <= graph.prefix, 0, steps)
    if order.name == "features":
        runs = [ChannelRun(d, 1, np.full(2, steps[0, d], np.int32), np.array([1, 2], np.uint8)) for d in range(grid[0])]
        node = graph.add("input", (2,), grid[0], runs)
        return node, Value(graph.ids(node))
    uses = np.repeat(np.array([1, 2], np.uint8), math.prod(grid))
    runs = []
    start = 0
    for c in range(1, channels + 1):
        if c == channels or (steps[c] != steps[start]).any():
            runs.append(ChannelRun(start, c - start, np.tile(steps[start], 2).astype(np.int32), uses))
            start = c
    node = graph.add("input", (2, *grid), channels, runs)
    ids = graph.ids(node)
    return node, Value(ids[..., 0] if len(order.event_shape) == 1 else ids.movedim(-1, 1))


def check_start(traced: Traced, start: float) -> None:
    """Raises ValueError where the network looks up the event's values in a table that has no row ``start``."""
    for node in traced.graph.nodes:
        for term in [t for run in node.runs for t in run.terms or () if t.index and t.piece.node is traced.input]:
            rows = len(term.weight_rows)
            if start not in range(rows):
                allowed = f"a whole number in 0 .. {rows - 1}, the rows of {node.name}, {node.where}"
                raise ValueError(f"start must be {allowed}, got {start}")
