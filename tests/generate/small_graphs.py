"""Graphs of about ten nodes for tests of single passes, built by the constructors that rules use."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastgen.generate.ir.graph import ChannelRun, Constant, Graph, Node, Piece, Recipe, Value
from fastgen.generate.ir.loops import loops_of
from fastgen.generate.schedule.scheduler import DrawSite

STEPS = 6


def sequence(channels: int = 1, steps: int = STEPS, shift: int = 0) -> tuple[Graph, Node, Value]:
    """A graph with the event of a sequence for two samples, its node, and its ids ``[2, channels, steps]``.

    ``shift``: 1 where the network reads every element one position late.
    """
    graph = Graph()
    ready = np.tile(np.arange(1 - shift, steps + 1 - shift, dtype=np.int32), 2)
    uses = np.repeat(np.array([1, 2], np.uint8), steps)
    node = graph.add("input", (2, steps), channels, [ChannelRun(0, channels, ready, uses)])
    return graph, node, Value(graph.ids(node).movedim(-1, 1))


def past(value: Value, distance: int = 1) -> Value:
    """The value some steps ago; zeros before the first."""
    return Value(torch.nn.functional.pad(value.ids, (distance, -distance)))


def weights(graph: Graph, name: str, tensor: Tensor) -> Recipe:
    """A parameter of the graph."""
    graph.constants[name] = tensor
    return Recipe((name,), lambda t: t)


def pointwise(graph: Graph, value: Value, matrix: Recipe, bias: Recipe | None = None) -> Value:
    """A 1 x 1 convolution: ``[2, C, steps]`` to ``[2, D, steps]``, as one contraction."""
    ids = value.ids.movedim(1, -1)
    first = ids.reshape(-1, ids.shape[-1])[:, 0].contiguous().numpy()
    rows = np.arange(ids.shape[-1])
    return Value(graph.contract(ids.shape[:-1], [(first, 1, len(rows), rows, False)], matrix, bias).ids.movedim(-1, 1))


def scalar(value: float) -> Constant:
    return Constant.literal(torch.tensor(value))


def draws_of(graph: Graph, value: Value, steps: int = STEPS) -> list[DrawSite]:
    """Draws that read a value ``[2, C, steps]``, one piece for each run of its node's channels."""
    node = graph.nodes[int(np.searchsorted(graph.bases, int(value.ids.max()), side="right")) - 1]
    rows = np.arange(steps, dtype=np.int32)
    pieces = [Piece(node, rows, np.full(steps, run.slot, np.int32), 1, run.length) for run in node.runs]
    return [DrawSite(0, 1, np.arange(steps), np.arange(steps), pieces)]


def values(graph: Graph, event: Tensor) -> dict[Node, Tensor]:
    """What every node computes, in float64, by its runs: event ``[2, steps, C]`` to ``[rows, channels]`` a node."""
    computed: dict[Node, Tensor] = {}

    def read(piece: Piece) -> Tensor:
        inside = torch.from_numpy(piece.rows >= 0)
        source = torch.from_numpy(np.where(piece.rows >= 0, piece.rows, 0)).long()
        slots = torch.from_numpy(piece.slots)[:, None] + piece.stride * torch.arange(piece.length)
        taken = computed[piece.node][source[:, None], torch.where(inside[:, None], slots, 0).long()]
        return torch.where(inside[:, None], taken, 0.0)

    zeros = {node: torch.zeros(node.rows, node.channels, dtype=torch.float64) for node in graph.nodes}
    computed.update((node, zeros[node]) for node in graph.nodes if node.loop)
    order = [node for node in graph.nodes if node.kind != "computed"]
    for members in loops_of(graph):  # of a loop all again, until the last row has what it reads
        order += [n for n in members if n.kind == "computed"] * (members[0].rows if members[0].loop else 1)
    for node in order:
        out = zeros[node].clone()
        if node.kind == "input":
            out = event.reshape(node.rows, node.channels).double()
        elif node.kind == "constant":
            out = node.values(graph.constants).double().reshape(node.rows, node.channels)
        else:
            for run in node.runs:
                out[:, run.slot : run.slot + run.length] = _run(graph, run, read)
        computed[node] = out
    return computed


def _run(graph: Graph, run: ChannelRun, read) -> Tensor:
    if run.terms is None:
        operands = [sum(map(read, pieces)) for pieces in run.operands]
        if run.opcode == "mulc":
            return operands[0] * run.x
        return {"add": torch.add, "mul": torch.mul, "tanh": torch.tanh, "sigmoid": torch.sigmoid}[run.opcode](*operands)
    matrix = run.matrix(graph.constants).double()[:, torch.from_numpy(run.columns)]
    total = sum(read(term.piece) @ matrix[torch.from_numpy(term.weight_rows)] for term in run.terms)
    if run.bias is not None:
        total = total + run.bias(graph.constants).double()[torch.from_numpy(run.columns)]
    return total
