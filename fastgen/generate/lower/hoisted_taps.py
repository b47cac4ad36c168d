"""Which terms of a contraction need not wait for the step: what machines sum ahead, several cells at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastgen.generate.ir.graph import Node, Piece
from fastgen.generate.ir.program import PIXEL, ROW
from fastgen.generate.lower.fusion_groups import Group
from fastgen.generate.orders import Order
from fastgen.generate.schedule.lattice import Address, Lattice
from fastgen.generate.schedule.rings import written
from fastgen.generate.schedule.scheduler import Placed

_TOGETHER = (8, 4, 2)
_LEAST = 2048
"""Weights that a code must have to be worth a start of its own."""


@dataclass(frozen=True)
class EarlyTerms:
    """Terms by number. ``late`` ones wait for their cell's step; ``early`` ones are summed for whole rows at their
    start (``kind`` ROW), or for ``together`` cells at the first one's step (PIXEL), and their weights are read once for
    all of these.
    """

    late: list[int]
    early: list[int]
    kind: int = ROW
    together: int = 1


def early_terms(group: Group, order: Order, placed: dict[Node, Placed], event: Node) -> EarlyTerms:
    """How to split the terms that the group's contractions share."""
    lattice, task = group.lattice, group.contractions[0]
    numbers = [n for n, address in enumerate(task.lattice.operands) if address is not None]
    if lattice.kind != PIXEL or not order.regular:
        return EarlyTerms(numbers, [])

    def there_at(phases: np.ndarray, chosen: list[int]) -> list[int]:
        operands, terms = task.lattice.operands, task.run.terms
        return [n for n in chosen if _written_by(terms[n].piece, operands[n], lattice, phases, placed, event)]

    if order.length > order.row_length:
        if lattice.row_step % order.row_length:
            return EarlyTerms(numbers, [])
        first = lattice.row_step * lattice.q + lattice.column_step * lattice.w.min() + lattice.delay
        early = there_at(2 * (first // order.row_length * order.row_length), numbers)
        return EarlyTerms([n for n in numbers if n not in early], early)
    return _in_blocks(group, numbers, there_at)


def _in_blocks(group: Group, numbers: list[int], there_at) -> EarlyTerms:
    """The taps of a sequence that lie some steps back, for as many cells at a time as spares the most reads."""
    lattice, terms = group.lattice, group.contractions[0].run.terms
    outputs = len(group.contractions) * group.lanes
    best, most = EarlyTerms(numbers, []), 0.0
    q0, q1, w0, w1 = lattice.box
    dense = [n for n in numbers if not terms[n].index and terms[n].piece.node.kind not in ("constant", "context")]
    for together in _TOGETHER if q1 - q0 == 1 and w1 - w0 > 1 else ():
        ahead = lattice.column_step * ((lattice.w - w0) % together)
        early = there_at(lattice.phases - 1 - 2 * ahead, dense)
        rows = sum(len(terms[n].weight_rows) for n in early)
        spared = rows * (1 - 1 / together)
        if rows * outputs >= _LEAST and spared > most:
            most = spared
            best = EarlyTerms([n for n in numbers if n not in early], early, PIXEL, together)
    return best


def _written_by(
    piece: Piece, address: Address, lattice: Lattice, phases: np.ndarray, placed: dict[Node, Placed], event: Node
) -> bool:
    if piece.node.kind in ("constant", "context"):
        return True
    q0, q1, w0, w1 = address.box
    inside = (lattice.q >= q0) & (lattice.q < q1) & (lattice.w >= w0) & (lattice.w < w1)
    positions = address.a * lattice.q[inside] + address.b * lattice.w[inside] + address.c
    return all(
        (written(placed[piece.node], piece.node.runs.index(run), event)[positions] <= phases[inside]).all()
        for run in piece.source_runs()
    )
