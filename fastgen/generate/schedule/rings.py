"""Ring buffers: a buffer keeps as many positions as its furthest reader needs."""

from __future__ import annotations

import numpy as np

from fastgen.generate.ir.graph import Graph, Node
from fastgen.generate.ir.instructions import PIXEL, PROLOGUE
from fastgen.generate.orders import Order
from fastgen.generate.schedule.iteration_domain import Cells, ScheduledDomain
from fastgen.generate.schedule.key_reads import oldest_reads
from fastgen.generate.schedule.scheduler import DrawSite, Placed

LOOKAHEAD = 8
"""Steps of a row that a machine may batch when a prompt is read: rings are longer by so many."""


_LOOKAHEAD_OF_ATTENTION = 64
"""As LOOKAHEAD, for networks that remember every position anyway, and whose prompts are long."""


def lookahead_of(graph: Graph, order: Order) -> int:
    """Returns how many steps a machine may batch."""
    attends = any(run.attention is not None for node in graph.nodes for run in node.runs)
    most = _LOOKAHEAD_OF_ATTENTION if attends and order.row_length == order.length else LOOKAHEAD
    return min(most, order.row_length) if order.regular else 1


def written(placed: Placed, number: int, event: Node) -> np.ndarray:
    """Returns the phase in which each position of run ``number`` is written; -2 if never, -1 if it is given."""
    if placed.node is event:
        return 2 * (placed.node.runs[number].ready[placed.row].astype(np.int64) - 1) + 1
    phases = np.full(placed.positions, -2, np.int64)
    for domain in placed.domains[number]:
        phases[domain.positions] = domain.phases
    return phases


def _grid(domain: ScheduledDomain) -> Cells:
    """Returns all cells of the domain's box."""
    box = domain.box
    ends = (box.row0, box.row1), (box.column0, box.column1), (box.frame0, box.frame1)
    row, column, frame = np.meshgrid(*(np.arange(*end) for end in ends), indexing="ij")
    return Cells(row.reshape(-1), column.reshape(-1), frame.reshape(-1))


def _horizon(phases: np.ndarray, order: Order, lookahead: int) -> np.ndarray:
    """Returns the last phase that may already have run, ahead of ``phases``, when a machine batches steps of a row."""
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

    def noted(node: Node, positions: np.ndarray, domain: ScheduledDomain, inside: np.ndarray) -> None:
        readers.setdefault(node, []).append((positions, domain.phases[inside]))
        advances = domain.schedule.row_step or domain.schedule.frame_step
        if order.length > order.row_length and order.regular and advances and domain.when == PIXEL:
            starts = domain.first_steps() // order.row_length * order.row_length
            readers[node].append((positions, 2 * starts[inside]))

    def read(domain: ScheduledDomain, pieces) -> None:
        for piece, access in zip(pieces, domain.operands, strict=True):
            if access is not None:
                inside = access.box.holds(*domain.cells)
                noted(piece.node, access.map.position(*domain.cells.chosen(inside)), domain, inside)

    for node in graph.nodes:
        for run, domains in zip(node.runs, placed[node].domains, strict=True):
            for domain in domains:
                read(domain, run.pieces())
                for keys in run.key_rows():
                    rows = placed[node].row[domain.positions]
                    positions, some = oldest_reads(placed[keys.node].position, keys, run.attention.seen, rows)
                    noted(keys.node, positions, domain, some)
    for draw in draws:
        read(draw.domain, draw.pieces)
    lengths = {}
    for node in graph.nodes:
        place = placed[node]
        if node is not event and (node.kind != "computed" or not any(place.domains)):
            continue
        lengths[node] = _length(node, place, order, event, readers.get(node, []), lookahead)
    return lengths


def _length(node: Node, place: Placed, order: Order, event: Node, reads, lookahead: int) -> int:
    if not order.regular:
        return place.positions
    runs = [_writes(place, number, event, order) for number in range(len(node.runs))]
    if node is not event and all(domain.when == PROLOGUE for domains in place.domains for domain in domains):
        return place.positions
    length = max(_apart(*run) for run in runs)
    position, phase = (np.concatenate(parts) for parts in zip(*runs, strict=True))
    by_phase = np.argsort(phase, kind="stable")
    highest = np.maximum.accumulate(position[by_phase])
    phase = phase[by_phase]
    for read, at in reads:
        if len(read):
            index = np.searchsorted(phase, _horizon(at, order, lookahead), side="right") - 1
            length = max(length, int((highest[index] - read)[index >= 0].max(initial=0)) + 1)
    return length


def _writes(place: Placed, number: int, event: Node, order: Order) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions that a run of a node writes, and the phase in which it writes each; -1 is the prologue."""
    if place.node is event:
        return np.arange(place.positions), written(place, number, event)
    positions, phases = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for domain in place.domains[number]:
        cells = _grid(domain)
        positions.append(domain.target.position(*cells))
        phases.append(domain.schedule.phases(domain.when, cells, order.row_length))
    return np.concatenate(positions), np.concatenate(phases)


def _apart(position: np.ndarray, phase: np.ndarray) -> int:
    """Returns the least ring in which no position is overwritten by one before it that is written with it or later."""
    by_phase = np.argsort(phase, kind="stable")
    position, phase = position[by_phase], phase[by_phase]
    lowest = np.minimum.accumulate(position[::-1])[::-1]
    with_it = np.searchsorted(phase, phase, side="left")
    return int((position - lowest[with_it]).max(initial=0)) + 1
