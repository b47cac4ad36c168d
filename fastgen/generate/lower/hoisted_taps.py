"""Hoisted taps: terms of a contraction that need not wait for the step, summed ahead for several cells at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastgen.generate.ir.graph import Node, Piece
from fastgen.generate.ir.instructions import PIXEL, ROW
from fastgen.generate.lower.fusion_groups import Group
from fastgen.generate.orders import Order
from fastgen.generate.schedule.iteration_domain import Access, ScheduledDomain
from fastgen.generate.schedule.rings import LOOKAHEAD, written
from fastgen.generate.schedule.scheduler import Placed

_BLOCKS = (LOOKAHEAD, LOOKAHEAD // 2, LOOKAHEAD // 4)
_LEAST = 2048
"""Weights that an instruction must have to be worth a start of its own."""


@dataclass(frozen=True)
class SplitTerms:
    """Terms by number. ``waiting`` ones wait for their cell's step; ``hoisted`` ones are summed for whole rows at their
    start (``when`` ROW), or for a ``block`` of cells at the first one's step (PIXEL), and their weights are read once
    for all of these.
    """

    waiting: list[int]
    hoisted: list[int]
    when: int = ROW
    block: int = 1


def split_terms(group: Group, order: Order, placed: dict[Node, Placed], event: Node) -> SplitTerms:
    """Returns how to split the terms that the group's contractions share."""
    domain, task = group.domain, group.contractions[0]
    numbers = [n for n, access in enumerate(task.domain.operands) if access is not None]
    if domain.when != PIXEL or not order.regular:
        return SplitTerms(numbers, [])

    def there_at(phases: np.ndarray, chosen: list[int]) -> list[int]:
        operands, terms = task.domain.operands, task.run.terms
        return [n for n in chosen if _written_by(terms[n].piece, operands[n], domain, phases, placed, event)]

    if order.length > order.row_length:
        if domain.schedule.row_step % order.row_length or domain.schedule.frame_step % order.row_length:
            return SplitTerms(numbers, [])
        hoisted = there_at(2 * (domain.first_steps() // order.row_length * order.row_length), numbers)
        return SplitTerms([n for n in numbers if n not in hoisted], hoisted)
    return _in_blocks(group, numbers, there_at)


def rows_at_once(domain: ScheduledDomain, row_length: int) -> int:
    """Returns how many rows of cells, one after the other, hold sums that are still read when those of a row start."""
    box, times = domain.box, domain.schedule
    width, height = box.column1 - box.column0, box.row1 - box.row0
    first = times.column_step * box.column0 + times.delay
    last = first % row_length + times.column_step * (width - 1)
    beyond = 0  # rows of a frame that start no earlier than the first of the next frame
    if box.frame1 - box.frame0 > 1 and times.row_step:
        beyond = max(0, height - times.frame_step // times.row_step)
    return beyond + 1 + last // row_length


def _in_blocks(group: Group, numbers: list[int], there_at) -> SplitTerms:
    """Returns the taps of a sequence that lie some steps back, for as many cells at a time as spares the most reads."""
    domain, terms = group.domain, group.contractions[0].run.terms
    outputs = len(group.contractions) * group.lanes
    best, most = SplitTerms(numbers, []), 0.0
    box = domain.box
    dense = [n for n in numbers if not terms[n].index and terms[n].piece.node.kind not in ("constant", "context")]
    for block in _BLOCKS if box.row1 - box.row0 == 1 and box.column1 - box.column0 > 1 else ():
        ahead = domain.schedule.column_step * ((domain.cells.column - box.column0) % block)
        hoisted = there_at(domain.phases - 1 - 2 * ahead, dense)
        rows = sum(len(terms[n].weight_rows) for n in hoisted)
        spared = rows * (1 - 1 / block)
        if rows * outputs >= _LEAST and spared > most:
            most = spared
            best = SplitTerms([n for n in numbers if n not in hoisted], hoisted, PIXEL, block)
    return best


def _written_by(
    piece: Piece, access: Access, domain: ScheduledDomain, phases: np.ndarray, placed: dict[Node, Placed], event: Node
) -> bool:
    if piece.node.kind in ("constant", "context"):
        return True
    inside = access.box.holds(*domain.cells)
    positions = access.map.position(*domain.cells.chosen(inside))
    return all(
        (written(placed[piece.node], number, event)[positions] <= phases[inside]).all()
        for number in piece.source_numbers()
    )
