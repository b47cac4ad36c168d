"""Orders the rows of every node by samples, as far as its dimensions allow: those of the first, then of the second."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fastgen.generate.ir.graph import Graph, Node, Piece
from fastgen.generate.ir.records import BATCH, halves
from fastgen.generate.schedule.scheduler import DrawSite


def samples_first(graph: Graph, draws: list[DrawSite]) -> None:
    """Moves the dimension of the samples to the front where a network has it elsewhere, as in ``[T, N, C]``.

    Without it, nothing would tell to which sample a row belongs that depends on no input.
    """
    moved: dict[Node, np.ndarray] = {}
    for node in graph.nodes:
        if node.kind == "computed" and not halves(node.uses) and all(run.attention is None for run in node.runs):
            dims = [d for d, size in enumerate(node.rows_shape) if size == BATCH and _is_batch(node, d)]
            if dims:
                moved[node] = _move(node, dims[0])
    if not moved:
        return
    pieces = {id(piece): piece for piece in _pieces(graph, draws)}
    for piece in pieces.values():
        if piece.node in moved:
            piece.rows = np.where(piece.rows >= 0, moved[piece.node][piece.rows], -1).astype(np.int32)
    for keys in (keys for node in graph.nodes for run in node.runs for keys in run.key_rows()):
        if keys.node in moved:
            keys.rows = moved[keys.node][keys.rows]


def _is_batch(node: Node, dim: int) -> bool:
    return halves(np.moveaxis(node.uses.reshape(node.rows_shape), dim, 0).reshape(-1))


def _move(node: Node, dim: int) -> np.ndarray:
    """Moves a dimension of the rows to the front; returns the new place of every row."""
    order = np.moveaxis(np.arange(node.rows).reshape(node.rows_shape), dim, 0).reshape(-1)
    read = {id(piece): piece for run in node.runs for piece in run.pieces()}
    for piece in read.values():
        piece.rows, piece.slots = piece.rows[order], piece.slots[order]
    for run in node.runs:
        run.ready, run.uses = run.ready[order], run.uses[order]
    node.rows_shape = (node.rows_shape[dim], *node.rows_shape[:dim], *node.rows_shape[dim + 1 :])
    places = np.empty(node.rows, np.int32)
    places[order] = np.arange(node.rows)
    return places


def _pieces(graph: Graph, draws: list[DrawSite]) -> Iterable[Piece]:
    yield from (piece for node in graph.nodes for run in node.runs for piece in run.pieces())
    yield from (piece for draw in draws for piece in draw.pieces)
