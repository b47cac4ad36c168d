"""The error for a node that has no schedule, and what may be why."""

from __future__ import annotations

import math

from fastgen.generate.errors import CompileError
from fastgen.generate.ir.graph import Graph, Node
from fastgen.generate.ir.repetitions import LEAST


def unplaced(graph: Graph, node: Node) -> CompileError:
    """Returns the error for a node without a schedule, with the use of a context or positions that may be why."""
    across = [p.node for run in node.runs for p in run.pieces() if p.node.kind == "context" and p.varies]
    if across:
        reason = (
            "it reads the channels of a context, one a position. A context with a value for "
            "every position must be [N, C, *positions], its frames the last dimension"
        )
    elif loop := _unrolled(graph):
        count, copied = loop
        reason = (
            f"the loop at {copied.name}, {copied.where}, stays unrolled, {count} times, as no step of the order lies "
            "between its iterations. A recurrence over positions must go on as they are drawn; one that runs against "
            "the order within a row, as the right-to-left half of a Diagonal BiLSTM, is not supported"
        )
    else:
        reader = _contracted_at(graph, node)
        read = f" (summed at {reader.name}, {reader.where})" if reader is not None else ""
        reason = (
            f"its cells{read} do not keep one distance from the steps of the order. A layer with a weight for "
            "every pair of positions (a matrix along the sequence, as in gMLP) is not supported"
        )
    error = CompileError(f"no regular schedule was found for {node.name}, {node.where}: {reason}")
    error.node, error.context = node.source, across[0].context if across else None
    return error


def _unrolled(graph: Graph) -> tuple[int, Node] | None:
    """Returns how often a line of a layer was called that no loop of the program computes, and a node of it."""
    copies: dict[tuple, list[Node]] = {}
    for node in graph.nodes:
        if node.kind == "computed" and not node.loop:
            operators = tuple((run.opcode, run.terms is None, run.length) for run in node.runs)
            copies.setdefault((node.name.partition(" (")[0], node.where, node.rows, operators), []).append(node)
    most = max(copies.values(), key=len, default=[])
    return (len(most), most[-1]) if len(most) >= 2 * LEAST and most[0].rows < math.prod(graph.grid) else None


def _contracted_at(graph: Graph, node: Node) -> Node | None:
    """Returns the first contraction that reads the node, or what is computed of it."""
    derived = {node}
    for other in graph.nodes[node.index + 1 :]:
        if any(piece.node in derived for run in other.runs for piece in run.pieces()):
            if any(run.terms is not None for run in other.runs):
                return other
            derived.add(other)
    return None
