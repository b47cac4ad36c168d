"""Sums of contractions become one contraction: skip connections, and a 1 x 1 convolution beside another."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from fastgen.generate.ir.graph import ChannelRun, Constant, Graph, Piece, Recipe, Term, derive
from fastgen.generate.schedule.scheduler import DrawSite

Summand = tuple[ChannelRun, np.ndarray]
"""A contraction, and the row of it for every row of the sum."""


def merge_sums(graph: Graph, draws: list[DrawSite]) -> None:
    """Makes every sum of contractions that nobody else reads contract all their inputs at once.

    A WaveNet's output, the sum of a skip convolution of every layer, becomes one product with all layers' gates.
    """
    readers = Counter(source for pieces in _readers(graph, draws) for piece in pieces for source in piece.source_runs())
    sums: dict[ChannelRun, list[Summand]] = {}
    for run in (run for node in graph.nodes for run in node.runs if run.opcode == "add"):
        parts = [_summands(run, pieces, readers, sums) for pieces in run.operands]
        if all(parts):
            sums[run] = [summand for part in parts for summand in part]
    merged = {source for run in sums for pieces in run.operands for source in pieces[0].source_runs()}
    for run, summands in sums.items():
        if run not in merged:
            _contract(graph, run, summands)


def _readers(graph: Graph, draws: list[DrawSite]) -> list[list[Piece]]:
    return [run.pieces() for node in graph.nodes for run in node.runs] + [draw.pieces for draw in draws]


def _summands(
    run: ChannelRun, pieces: list[Piece], readers: Counter[ChannelRun], sums: dict[ChannelRun, list[Summand]]
) -> list[Summand]:
    """Returns the contractions behind one operand of a sum; none where they cannot be merged into it."""
    if len(pieces) != 1:
        return []
    (piece,) = pieces
    rows = piece.rows
    if piece.stride != 1 or piece.varies or (rows < 0).any() or len(np.unique(rows)) < len(rows):
        return []
    sources = piece.source_runs()
    source = sources[0]
    whole = len(sources) == 1 and (int(piece.slots[0]), piece.length) == (source.slot, source.length)
    contracts = source.terms is not None or source in sums
    if not contracts or not whole or piece.length != run.length or readers[source] != 1:
        return []
    return [(part, inner[rows]) for part, inner in sums.get(source, [(source, np.arange(piece.node.rows))])]


def _contract(graph: Graph, run: ChannelRun, summands: list[Summand]) -> None:
    terms, matrices, first = [], [], 0
    for source, rows in summands:
        matrix = source.matrix(graph.constants)
        matrices.append(Constant(matrix, source.matrix))
        terms += [Term(_seen(t.piece, rows), t.weight_rows + first, t.index) for t in source.terms]
        first += len(matrix)
    columns = [torch.from_numpy(source.columns) for source, _ in summands]
    run.terms, run.columns = terms, np.arange(run.length)
    run.matrix = derive(lambda *all: torch.cat([m[:, c] for m, c in zip(all, columns, strict=True)]), *matrices).recipe
    run.bias = _bias(graph, [source for source, _ in summands])
    run.opcode, run.operands = None, []


def _bias(graph: Graph, sources: list[ChannelRun]) -> Recipe | None:
    biased = [source for source in sources if source.bias is not None]
    if not biased:
        return None
    columns = [torch.from_numpy(source.columns) for source in biased]
    biases = [Constant(source.bias(graph.constants), source.bias) for source in biased]
    return derive(lambda *all: sum(b[c] for b, c in zip(all, columns, strict=True)), *biases).recipe


def _seen(piece: Piece, rows: np.ndarray) -> Piece:
    if np.array_equal(rows, np.arange(len(piece.rows))):
        return piece
    return Piece(piece.node, piece.rows[rows], piece.slots[rows], piece.stride, piece.length)
