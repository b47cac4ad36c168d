"""One analysis: from a module at one event shape to its step program."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from fastgen.generate.compile.draw_sites import draw_sites
from fastgen.generate.compile.inputs import advice, with_input
from fastgen.generate.errors import CompileError
from fastgen.generate.frontend.context_plan import ContextPlan
from fastgen.generate.frontend.export import Adapted, Exported, export, state_of
from fastgen.generate.frontend.trace import Traced, check_finite, trace
from fastgen.generate.heads import Head
from fastgen.generate.ir.graph import ChannelRun, Graph, Node, Value
from fastgen.generate.lower.lowering import Lowered, Lowering
from fastgen.generate.orders import Order, event_grid, make_order
from fastgen.generate.passes.causality import check_causal
from fastgen.generate.passes.fold_constant_cells import fold_constant_cells
from fastgen.generate.passes.merge_sums import merge_sums
from fastgen.generate.passes.split_channel_runs import split_channel_runs
from fastgen.generate.schedule.scheduler import DrawSite, Placed, Scheduler

LOOKAHEAD = 8
"""Steps of a sequence that a machine may batch when a prompt is read."""


@dataclass
class Analysis:
    """Everything that compiling found out at one event shape."""

    exported: Exported
    traced: Traced
    plan: ContextPlan | None
    """What of the contexts runs in PyTorch at the start; None where there is no context."""
    event_shape: tuple[int, ...]
    order: Order
    head: Head
    """With the input that the network takes."""
    draws: list[DrawSite]
    placed: dict[Node, Placed]
    lowered: Lowered


def analyse(
    module: nn.Module,
    event_shape,
    head: Head,
    order,
    predicts: str,
    adapter: Callable | None,
    context,
    start: float = 0.0,
) -> Analysis:
    """Export ``module`` at ``event_shape``, find the schedule and lower it.

    ``context``: tensors for a batch of two, or None. ``start``: the input before the first element.
    """
    order = make_order(order, event_shape)
    shape = (2, *event_shape)
    network = Adapted(module, adapter)
    head = with_input(head.resolve(event_shape), network, shape, context)
    x = head.to_input(torch.zeros(shape, dtype=torch.int64 if head.levels else torch.float32))
    try:
        exported = export(module, x, context, adapter)
    except CompileError as error:
        if said := advice(head, network, shape, context):
            raise CompileError(f"{error}{said}") from error
        raise
    state = state_of(exported, network)
    check_finite(exported, state, {name for name, _ in network.named_parameters()})
    plan = None if context is None else ContextPlan(exported, state, context, event_grid(event_shape)[1])
    while True:
        try:
            return _analysed(exported, state, event_shape, head, order, 1 if predicts == "next" else 0, plan, start)
        except CompileError as error:
            if plan is None or not plan.absorb(error):
                raise


def _analysed(
    exported: Exported, state, event_shape, head: Head, order: Order, shift: int, plan: ContextPlan | None, start: float
) -> Analysis:
    """The passes, in order: from an exported graph to its program."""

    def event(graph: Graph, example: Tensor) -> tuple[Node, Value]:
        node, value = _event_node(graph, order, event_shape, shift)
        return node, replace(value, **_input_range(head, start))

    traced = trace(exported, state, event, plan)
    graph = traced.graph
    try:
        parameters = head.arrange(traced.output.ids, event_shape)
    except ValueError as error:
        raise CompileError(str(error)) from error
    with graph.at(traced.place):
        draws = draw_sites(graph, parameters, order, event_shape)
    _ran("trace", graph, draws)

    check_causal(draws, order, event_shape, traced.input, shift, graph.remark)

    traced.folded += fold_constant_cells(graph, order, draws)
    _ran("fold_constant_cells", graph, draws)

    split_channel_runs(graph)
    _ran("split_channel_runs", graph, draws)

    merge_sums(graph, draws)
    _ran("merge_sums", graph, draws)

    placed = Scheduler(graph, order, draws).run()
    lookahead = 1 if not order.regular else min(LOOKAHEAD, order.row_length)
    lowered = Lowering(graph, order, placed, draws, traced.input, shift, lookahead).run()
    lowered.program.weights, lowered.program.constants = lowered.fill(graph.constants)
    return Analysis(exported, traced, plan, tuple(event_shape), order, head, draws, placed, lowered)


after_pass: Callable[[str, Graph, list[DrawSite]], None] | None = None
"""Called after every pass with its name, the graph and the draws; None: nothing is. Tests verify the graph here."""


def _ran(name: str, graph: Graph, draws: list[DrawSite]) -> None:
    if after_pass is not None:
        after_pass(name, graph, draws)


def _input_range(head, start: float) -> dict[str, float]:
    """The least and the greatest number that the network can be fed."""
    if not head.levels or head.feed_raw:
        return {}
    inputs = [*head.inputs.tolist(), start]
    return {"low": min(inputs), "high": max(inputs)}


def _event_node(graph: Graph, order: Order, event_shape, shift: int) -> tuple[Node, Value]:
    channels, grid = event_grid(event_shape)
    steps = order.steps + 1 - shift
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
    return node, Value(ids[..., 0] if len(event_shape) == 1 else ids.movedim(-1, 1))


def check_start(traced: Traced, start: float) -> None:
    """Raises ValueError where the network looks up the event's values in a table that has no row ``start``."""
    for node in traced.graph.nodes:
        for term in [t for run in node.runs for t in run.terms or () if t.index and t.piece.node is traced.input]:
            rows = len(term.weight_rows)
            if start not in range(rows):
                allowed = f"a whole number in 0 .. {rows - 1}, the rows of {node.name}, {node.where}"
                raise ValueError(f"start must be {allowed}, got {start}")
