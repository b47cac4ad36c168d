"""Which cells of an iteration domain run at a step, and at the start of a row of steps."""

from __future__ import annotations

from collections.abc import Iterator

from fastgen.generate.ir.instructions import IterationDomain

Cell = tuple[int, int, int]
"""Row, column and frame."""
Rows = list[int] | range


def _within(stride: int, first: int, last: int, begin: int, end: int) -> range:
    """Returns the numbers n in ``begin .. end - 1`` with ``first <= stride * n <= last``; all of them for stride 0."""
    return range(max(begin, -(-first // stride)), min(end, last // stride + 1)) if stride else range(begin, end)


def row_cells(domain: IterationDomain, start: int) -> Iterator[tuple[int, Rows]]:
    """Yields (frame, rows) of the cells that answer to the start of a row of steps, in the order of the frames."""
    rest, stride = start - domain.delay, domain.row_stride
    below = rest - stride * (domain.row1 - 1), rest - stride * domain.row0
    for frame in _within(domain.frame_stride, *below, domain.frame0, domain.frame1):
        along = rest - domain.frame_stride * frame
        if stride == 0 and along == 0:
            yield frame, range(domain.row0, domain.row1)
        elif stride and along % stride == 0 and domain.row0 <= along // stride < domain.row1:
            yield frame, [along // stride]


def pixel_cells(domain: IterationDomain, t: int, row_length: int) -> Iterator[Cell]:
    """Yields the cells that answer to step t, in the order of the frames and the rows."""
    frame_steps, row_steps = row_length * domain.frame_stride, row_length * domain.row_stride
    column_steps = max(domain.column_stride, 1)
    last = t - domain.delay - column_steps * domain.column0
    first = last - column_steps * max(domain.columns - 1, 0)
    rows = row_steps * domain.row0, row_steps * (domain.row1 - 1)
    for frame in _within(frame_steps, first - rows[1], last - rows[0], domain.frame0, domain.frame1):
        done = frame_steps * frame
        for row in _within(row_steps, first - done, last - done, domain.row0, domain.row1):
            column, rest = divmod(t - domain.delay - done - row_steps * row, column_steps)
            if rest == 0 and domain.column0 <= column < domain.column1:
                yield row, column, frame
