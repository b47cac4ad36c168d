"""Lattices: cells (q, w) of a run that are computed alike, with affine times and affine addresses."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

INFINITE = np.int64(1 << 60)
"""The deadline of what nobody reads."""


@dataclass
class Address:
    """position = a q + b w + c inside the box ``[q0, q1) x [w0, w1)``, channels from ``slot`` on."""

    a: int
    b: int
    c: int
    slot: int
    box: tuple[int, int, int, int]


@dataclass(eq=False)
class Lattice:
    """Cells of one run that are computed alike."""

    kind: int
    row_step: int  # phases: steps per q (rows per q for ROW)
    column_step: int
    delay: int
    q: np.ndarray
    w: np.ndarray
    positions: np.ndarray
    phases: np.ndarray
    target: Address
    operands: list[Address | None] = field(default_factory=list)

    @property
    def domain(self) -> tuple[int, ...]:
        return (self.kind, self.row_step, self.column_step, self.delay, *self.box)

    @property
    def box(self) -> tuple[int, int, int, int]:
        return int(self.q.min()), int(self.q.max()) + 1, int(self.w.min()), int(self.w.max()) + 1


def affine(q: np.ndarray, w: np.ndarray, v: np.ndarray) -> tuple[int, int, int] | None:
    """Integers with ``v == a q + b w + c`` everywhere, or None."""
    a = b = 0
    same_row = (q == q[0]) & (w != w[0])
    if same_row.any():
        i = int(np.argmax(same_row))
        b, rest = divmod(int(v[i] - v[0]), int(w[i] - w[0]))
        if rest:
            return None
    other = q != q[0]
    if other.any():
        i = int(np.argmax(other))
        a, rest = divmod(int(v[i] - v[0]) - b * int(w[i] - w[0]), int(q[i] - q[0]))
        if rest:
            return None
    c = int(v[0]) - a * int(q[0]) - b * int(w[0])
    return (a, b, c) if bool((v == a * q + b * w + c).all()) else None


def slopes(q: np.ndarray, w: np.ndarray, v: np.ndarray) -> tuple[int, int]:
    """Likely advance of ``v`` per q and per w: the commonest differences between neighbours."""
    order = np.lexsort((w, q))
    q, w, v = q[order], w[order], v[order]
    columns = _commonest(v[1:] - v[:-1], (q[1:] == q[:-1]) & (w[1:] == w[:-1] + 1))
    order = np.lexsort((q, w))
    q, w, v = q[order], w[order], v[order]
    rows = _commonest(v[1:] - v[:-1], (w[1:] == w[:-1]) & (q[1:] == q[:-1] + 1))
    return rows, columns


def _commonest(values: np.ndarray, where: np.ndarray) -> int:
    values = values[where & (np.abs(values) < INFINITE // 4)]
    if not len(values):
        return 0
    unique, counts = np.unique(values, return_counts=True)
    return int(unique[counts.argmax()])


def regular_times(q, w, ready, deadline, likely: tuple[int, int]) -> tuple[int, int, int] | None:
    """(advance per q, advance per w, delay) of the latest regular schedule from ``ready`` to ``deadline``, or None.

    ``likely`` is the advance that the sizes of the grids suggest; others come from the times themselves.
    """
    if (ready > deadline).any():
        return None
    for row_step, column_step in likely, slopes(q, w, deadline), slopes(q, w, ready):
        if row_step < 0 or column_step < 0:
            continue
        base = row_step * q + column_step * w
        low, high = int((ready - base).max()), int((deadline - base).min())
        if low <= high:
            return row_step, column_step, high
    return None
