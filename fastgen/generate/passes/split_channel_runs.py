"""Cuts runs of channels so that an elementwise chain and its producer have equal lanes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastgen.generate.ir.graph import ChannelRun, Graph, Node, Piece
from fastgen.generate.ir.opcodes import REDUCTIONS

_MOST_PARTS = 16


def split_channel_runs(graph: Graph) -> None:
    """Splits every node's runs at the borders at which an elementwise reader, or its producer, is split.

    A gate ``tanh(y[:c]) * sigmoid(y[c:])`` cuts the convolution y in two equal parts of one code. Reductions stay
    whole.
    """
    cuts = {node: {run.slot for run in node.runs} | {node.channels} for node in graph.nodes}
    links = [
        (node, run, piece, int(piece.slots.max()))
        for node, run in _maps(graph)
        for piece in run.pieces()
        if _links(run, piece)
    ]
    changed = True
    while changed:
        changed = False
        for node, run, piece, slot in links:
            source = piece.node
            ends = {slot, slot + run.length} if run.opcode not in REDUCTIONS else set()
            inner = {c - run.slot + slot for c in cuts[node] if run.slot < c < run.slot + run.length}
            outer = {c - slot + run.slot for c in cuts[source] if slot < c < slot + run.length}
            if run.opcode in REDUCTIONS:
                inner = outer = set()
            for table, new in ((cuts[source], ends | inner), (cuts[node], outer)):
                if not new <= table:
                    table |= new
                    changed = True
    for node in graph.nodes:
        if node.kind == "computed" and len(cuts[node]) - 1 > len(node.runs):
            node.set_runs([part for run in node.runs for part in _split(run, cuts[node])])


def _maps(graph: Graph) -> list[tuple[Node, ChannelRun]]:
    return [(node, run) for node in graph.nodes for run in node.runs if run.opcode is not None]


def _links(run: ChannelRun, piece: Piece) -> bool:
    return (
        piece.node.kind == "computed"
        and piece.stride == 1
        and not piece.varies
        and piece.pointwise
        and piece.length == run.length
    )


def _split(run: ChannelRun, cuts: set[int]) -> list[ChannelRun]:
    inside = sorted(c for c in cuts if run.slot < c < run.slot + run.length)
    if not inside or run.opcode in REDUCTIONS or len(inside) >= _MOST_PARTS:
        return [run]
    parts = []
    for start, stop in zip([run.slot, *inside], [*inside, run.slot + run.length], strict=True):
        offset, length = start - run.slot, stop - start
        part = replace(run, slot=start, length=length)
        if run.terms is not None:
            part.columns = run.columns[offset : offset + length]
        else:
            part.operands = [[_shift(p, offset, length) for p in pieces] for pieces in run.operands]
        parts.append(part)
    return parts


def _shift(piece: Piece, offset: int, length: int) -> Piece:
    slots = np.where(piece.rows >= 0, piece.slots + piece.stride * offset, 0).astype(np.int32)
    return Piece(piece.node, piece.rows, slots, piece.stride, length)
