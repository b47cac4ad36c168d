"""The rows of nodes that the draws need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastgen.generate.ir.graph import Graph, Node
from fastgen.generate.schedule.scheduler import DrawSite


def needed_rows(graph: Graph, draws: Sequence[DrawSite]) -> dict[Node, np.ndarray]:
    """Returns for every computed node which of its rows (bool ``[rows]``) the draws, of the first sample, depend on.

    Of a loop, and of what attention reads, all rows are taken to be needed.
    """
    needed = {node: np.full(node.rows, node.loop > 0) for node in graph.nodes if node.kind == "computed"}

    def need(node: Node, rows: np.ndarray) -> None:
        if node in needed:
            needed[node][rows[rows >= 0]] = True

    for draw in draws:
        for piece in draw.pieces:
            need(piece.node, piece.rows)
    for node in reversed(graph.nodes):
        for run in node.runs if node in needed and needed[node].any() else ():
            for piece in run.pieces():
                need(piece.node, piece.rows[needed[node]])
            for keys in run.key_rows():
                need(keys.node, np.arange(keys.node.rows))
    return needed
