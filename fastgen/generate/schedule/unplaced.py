"""The error for a node that has no schedule, and what may be why."""

from __future__ import annotations

from fastgen.generate.errors import CompileError
from fastgen.generate.ir.graph import Graph, Node


def unplaced(graph: Graph, node: Node) -> CompileError:
    """Returns the error for a node without a schedule, with the use of a context or positions that may be why."""
    across = [p.node for run in node.runs for p in run.pieces() if p.node.kind == "context" and p.varies]
    if across:
        reason = (
            "it reads the channels of a context, one a position. A context with a value for "
            "every position must be [N, C, *positions], its frames the last dimension"
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


def _contracted_at(graph: Graph, node: Node) -> Node | None:
    """Returns the first contraction that reads the node, or what is computed of it."""
    derived = {node}
    for other in graph.nodes[node.index + 1 :]:
        if any(piece.node in derived for run in other.runs for piece in run.pieces()):
            if any(run.terms is not None for run in other.runs):
                return other
            derived.add(other)
    return None
