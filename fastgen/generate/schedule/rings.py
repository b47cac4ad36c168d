"""Ring buffers: a buffer keeps as many positions as its furthest reader needs."""

from __future__ import annotations

import numpy as np

from fastgen.generate.ir.graph import Graph, Node
from fastgen.generate.ir.instructions import PIXEL, PROLOGUE, ROW
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
    row, column = np.meshgrid(np.arange(box.row0, box.row1), np.arange(box.column0, box.column1), indexing="ij")
    return Cells(row.reshape(-1), column.reshape(-1))


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
        if order.length > order.row_length and order.regular and domain.row_step and domain.when == PIXEL:
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
    positions, phases, whole = [], [], [domain for domains in place.domains for domain in domains]
    if node is event:
        for number in range(len(node.runs)):
            positions.append(np.arange(place.positions))
            phases.append(written(place, number, event))
    else:
        for domain in whole:
            row, column = _grid(domain)
            positions.append(domain.target.position(row, column))
            if domain.when == PROLOGUE:
                if all(other.when == PROLOGUE for other in whole):
                    return place.positions
                phases.append(np.full(len(row), -1))
            elif domain.when == ROW:
                phases.append(2 * (domain.row_step * row + domain.delay) * order.row_length)
            else:
                phases.append(2 * (domain.row_step * row + domain.column_step * column + domain.delay) + 1)
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
