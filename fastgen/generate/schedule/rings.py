"""How many positions a buffer keeps: as many as its furthest reader needs."""

from __future__ import annotations

import numpy as np

from fastgen.generate.ir.graph import Graph, Node
from fastgen.generate.ir.program import PIXEL, PROLOGUE, ROW
from fastgen.generate.orders import Order
from fastgen.generate.schedule.lattice import Lattice
from fastgen.generate.schedule.scheduler import DrawSite, Placed


def written(placed: Placed, number: int, event: Node) -> np.ndarray:
    """Phase in which each position of run ``number`` is written; never-written positions are -2, given ones -1."""
    if placed.node is event:
        return 2 * (placed.node.runs[number].ready[placed.row].astype(np.int64) - 1) + 1
    phases = np.full(placed.positions, -2, np.int64)
    for lattice in placed.lattices[number]:
        phases[lattice.positions] = lattice.phases
    return phases


def _grid(lattice: Lattice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    q0, q1, w0, w1 = lattice.box
    q, w = np.meshgrid(np.arange(q0, q1), np.arange(w0, w1), indexing="ij")
    return (
        q.reshape(-1),
        w.reshape(-1),
        lattice.target.a * q.reshape(-1) + lattice.target.b * w.reshape(-1) + lattice.target.c,
    )


def _horizon(phases: np.ndarray, order: Order, lookahead: int) -> np.ndarray:
    """The last phase that may already have run, ahead of ``phases``, when a machine batches steps of a row."""
    steps = phases // 2
    if order.length > order.row_length:
        end = (steps // order.row_length + 1) * order.row_length - 1
    else:
        end = steps + lookahead - 1
    return 2 * end + 1


def ring_lengths(
    graph: Graph, order: Order, placed: dict[Node, Placed], draws: list[DrawSite], event: Node, lookahead: int
) -> dict[Node, int]:
    readers: dict[Node, list[tuple[np.ndarray, np.ndarray]]] = {}

    def read(lattice: Lattice, pieces) -> None:
        for piece, address in zip(pieces, lattice.operands, strict=True):
            if address is not None:
                q0, q1, w0, w1 = address.box
                inside = (lattice.q >= q0) & (lattice.q < q1) & (lattice.w >= w0) & (lattice.w < w1)
                positions = address.a * lattice.q[inside] + address.b * lattice.w[inside] + address.c
                readers.setdefault(piece.node, []).append((positions, lattice.phases[inside]))
                if order.length > order.row_length and order.regular and lattice.row_step and lattice.kind == PIXEL:
                    first = lattice.row_step * lattice.q + lattice.column_step * lattice.w.min() + lattice.delay
                    starts = first // order.row_length * order.row_length
                    readers[piece.node].append((positions, 2 * starts[inside]))

    for node in graph.nodes:
        for run, lattices in zip(node.runs, placed[node].lattices, strict=True):
            for lattice in lattices:
                read(lattice, run.pieces())
    for draw in draws:
        read(draw.lattice, draw.pieces)
    lengths = {}
    for node in graph.nodes:
        place = placed[node]
        if node is not event and (node.kind != "computed" or not any(place.lattices)):
            continue
        lengths[node] = _length(node, place, order, event, readers.get(node, []), lookahead)
    return lengths


def _length(node: Node, place: Placed, order: Order, event: Node, reads, lookahead: int) -> int:
    if not order.regular:
        return place.positions
    positions, phases = [], []
    if node is event:
        for number in range(len(node.runs)):
            positions.append(np.arange(place.positions))
            phases.append(written(place, number, event))
    else:
        for lattice in (lat for lattices in place.lattices for lat in lattices):
            q, w, p = _grid(lattice)
            positions.append(p)
            if lattice.kind == PROLOGUE:
                return place.positions
            if lattice.kind == ROW:
                phases.append(2 * (lattice.row_step * q + lattice.delay) * order.row_length)
            else:
                phases.append(2 * (lattice.row_step * q + lattice.column_step * w + lattice.delay) + 1)
    position, phase = np.concatenate(positions), np.concatenate(phases)
    by_phase = np.argsort(phase, kind="stable")
    highest = np.maximum.accumulate(position[by_phase])
    phase = phase[by_phase]
    length = 1
    for read, at in reads:
        if len(read):
            index = np.searchsorted(phase, _horizon(at, order, lookahead), side="right") - 1
            length = max(length, int((highest[index] - read)[index >= 0].max(initial=0)) + 1)
    return length
