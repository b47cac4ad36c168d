"""Borders: what an operand reads outside its box, in the place of a second operand that is a constant there."""

from __future__ import annotations

import numpy as np

from fastgen.generate.ir.graph import Constant, Piece, Recipe, derive
from fastgen.generate.schedule.iteration_domain import Access, ScheduledDomain

Read = tuple[Piece, Access]


def border_beyond(domain: ScheduledDomain, read: Read, other: Read, constants: dict) -> Recipe | None:
    """Returns the values that ``other`` gives at all the cells at which ``read`` gives none; None where it does not.

    ``read`` is computed, ``other`` one row of a constant at exactly those cells.
    """
    (piece, access), (constant, outside) = read, other
    if piece.node.kind == "constant" or constant.node.kind != "constant" or piece.length != constant.length:
        return None
    inside, beyond = access.box.holds(*domain.cells), outside.box.holds(*domain.cells)
    if (inside == beyond).any():
        return None
    positions = np.unique(outside.map.position(*domain.cells.chosen(beyond)))
    if len(positions) > 1:
        return None
    node, row = constant.node, int(positions[0])
    slots = outside.slot + constant.stride * np.arange(constant.length)
    table = Constant(node.values(constants), node.values)
    return derive(lambda values: values.reshape(node.rows, node.channels)[row, slots], table).recipe
