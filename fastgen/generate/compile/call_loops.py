"""Loops among the operators that a network calls: whether they go on at another length as they began."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fastgen.generate.ir.repetitions import Repetition, repetitions

_FIRST = 2
"""Iterations whose arguments may be others than those of the rest: initial states."""

_MANY = 16
"""Arguments, or results, from which on there may be one for each position."""


@dataclass(frozen=True)
class Call:
    """An operator that took part in computing the output."""

    operator: object
    leaves: list
    """Its arguments: tensors that depend on the input as (number of the call, of its output), others as they are."""
    shapes: list[torch.Size]
    where: str

    def sizes(self) -> list[int]:
        """Returns the sizes of the results; of many that are alike their number, and those of one."""
        alike = len(self.shapes) > _MANY and len(set(self.shapes)) == 1
        return [len(self.shapes), *self.shapes[0]] if alike else [n for shape in self.shapes for n in shape]


@dataclass(frozen=True)
class _Read:
    """Results that a call reads: of one call, or of a loop's iterations ``first .. last`` counted from its ends."""

    segment: int
    place: int
    output: int
    first: int = 0
    last: int = 0
    of: int = 1
    """Iterations of the loop."""
    at: int | None = None
    """The iteration that reads, where that is of a loop of equal length."""

    def goes_on_as(self, other: _Read) -> bool:
        """Whether it is the same at another length: at the same distance from the start, the end or its reader."""
        if (self.segment, self.place, self.output) != (other.segment, other.place, other.output):
            return False
        if self.at is not None and other.at is not None and self.at - self.first == other.at - other.first:
            return True
        starts, ends = self.first == other.first, self.of - self.first == other.of - other.first
        return (starts or ends) and (self.last == other.last or self.of - self.last == other.of - other.last)


class CalledLoops:
    """The calls of a network, those of its loops by iterations."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = calls
        known: dict[Hashable, int] = {}
        tokens = np.array([known.setdefault(_token(call), len(known)) for call in calls], np.int64)
        self.segments: list[Repetition] = []
        at = 0
        for loop in (*repetitions(tokens), Repetition(len(calls), len(calls), 1)):
            self.segments += [Repetition(n, n + 1, 1) for n in range(at, loop.start)]
            self.segments += [loop] if loop.stop > loop.start else []
            at = loop.stop
        self._segment = np.concatenate([np.full(s.stop - s.start, n) for n, s in enumerate(self.segments)] or [[]])

    @property
    def any(self) -> bool:
        return len(self.segments) < len(self.calls)

    def iterations(self, segment: int) -> int:
        """Returns how often the body of a loop is begun; 1 for a call by itself."""
        start, stop, period = self.segments[segment]
        return -(-(stop - start) // period)

    def call(self, segment: int, place: int, iteration: int) -> Call | None:
        start, stop, period = self.segments[segment]
        number = start + iteration * period + place
        return self.calls[number] if number < stop else None

    def leaves(self, call: Call, segment: int, iteration: int) -> list:
        """Returns the arguments, results of calls as ``_Read``, those of successive iterations as one."""
        found: list = []
        for leaf in call.leaves:
            read = self._read(leaf, segment, iteration) if isinstance(leaf, tuple) else leaf
            before = found[-1] if found else None
            if isinstance(read, _Read) and isinstance(before, _Read) and read.of > 1:
                same = (before.segment, before.place, before.output) == (read.segment, read.place, read.output)
                if same and read.first == before.last + 1:
                    found[-1] = _Read(*(before.segment, before.place, before.output, before.first, read.last, read.of))
                    continue
            found.append(read)
        return found

    def _read(self, leaf: tuple[int, int], segment: int, iteration: int) -> _Read:
        number, output = leaf
        source = int(self._segment[number])
        start, _, period = self.segments[source]
        first, place = divmod(number - start, period)
        count = self.iterations(source)
        alike = count > 1 and self.iterations(segment) > 1
        return _Read(source, place, output, first, first, count, iteration if alike else None)


def _token(call: Call) -> Hashable:
    """Returns what is equal for the calls of a loop: all but numbers and what is read."""
    kinds = [type(leaf) if isinstance(leaf, (int, float, Tensor, tuple)) else str(leaf) for leaf in call.leaves]
    sizes = tuple(len(shape) for shape in call.shapes[:_MANY])
    return call.operator, call.where, sizes, tuple(kinds[:_MANY])


def departure_of_loops(a: CalledLoops, b: CalledLoops, periods: int, goes_on: Callable[..., bool]) -> Call | None:
    """Returns the first call at which ``b`` is not ``a`` so many periods longer, or None.

    ``goes_on(x, y, periods)`` compares two arguments that are no results.
    """
    for number in range(max(len(a.segments), len(b.segments))):
        if number >= min(len(a.segments), len(b.segments)):
            longer = a if len(a.segments) > len(b.segments) else b
            return longer.call(number, 0, 0)
        departs = _departs(a, b, number, periods, goes_on)
        if departs is not None:
            return departs
    return None


def _departs(a: CalledLoops, b: CalledLoops, segment: int, periods: int, goes_on) -> Call | None:
    counts = a.iterations(segment), b.iterations(segment)
    first = b.call(segment, 0, 0)
    (start, stop, period), (other_start, other_stop, other_period) = a.segments[segment], b.segments[segment]
    if period != other_period or (stop - start) % period != (other_stop - other_start) % period:
        return first
    if (counts[0] > 1) != (counts[1] > 1) or (counts[1] - counts[0]) % periods:
        return first
    for place in range(period):
        made = [[c.call(segment, place, k) for k in range(n)] for c, n in zip((a, b), counts, strict=True)]
        rows = [
            [[*c.leaves(call, segment, k), *call.sizes()] for k, call in enumerate(calls) if call is not None]
            for c, calls in zip((a, b), made, strict=True)
        ]  # fmt: skip
        if any(not _alike(x, y, periods, goes_on) for x, y in zip(*rows, strict=False)):
            return made[1][0]
        if counts[0] != counts[1] and not all(map(_regular, rows)):  # layers of one kind need not be regular
            return made[1][0]
    return None


def _alike(a: list, b: list, periods: int, goes_on) -> bool:
    if len(a) != len(b):
        return False
    return all(
        (isinstance(y, _Read) and x.goes_on_as(y)) if isinstance(x, _Read) else goes_on(x, y, periods)
        for x, y in zip(a, b, strict=True)
    )


def _regular(rows: list[list]) -> bool:
    """Whether the arguments of a loop's iterations follow from one another, but for those of the first ones."""
    rest = rows[_FIRST:]
    if any(len(row) != len(rest[0]) for row in rest):
        return False
    for column in zip(*rest, strict=True):
        if all(type(value) is int for value in column):
            if len({y - x for x, y in pairwise(column)}) > 1:
                return False
        elif all(isinstance(value, _Read) for value in column):
            if not all(_follows(x, y) for x, y in pairwise(column)):
                return False
        elif not all(_equal(column[0], value) for value in column):
            return False
    return True


def _equal(x, y) -> bool:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x is y or (x.shape == y.shape and torch.equal(x, y))
    return type(x) is type(y) and x == y


def _follows(x: _Read, y: _Read) -> bool:
    if (x.segment, x.place) != (y.segment, y.place) or y.output - x.output not in (0, 1):
        return False
    return (y.first - x.first, y.last - x.last) in ((0, 0), (1, 1), (0, 1))
