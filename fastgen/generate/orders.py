"""Generation orders: which step draws which element of the event."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral

import numpy as np

from fastgen.generate.step_rules import RULES, StepRule

ORDERS = ("raster", "raster-subpixel", "time", "time-channels", "features")
MOST_ELEMENTS = 1 << 40
"""Of an event; so many steps, and what is computed with them, fit into 64 bits."""


@dataclass(frozen=True, eq=False)
class Order:
    """Says which of ``length`` steps draws channel c of position p (positions in natural order).

    ``row_length`` is the number of steps in a row of an image or of a frame; a sequence is one row. ``regular`` orders
    have programs whose size does not depend on the event's size; an arbitrary permutation is unrolled.
    """

    name: str
    event_shape: tuple[int, ...]
    channels: int
    grid: tuple[int, ...]
    """Sizes of the event without its channels."""
    row_length: int
    regular: bool
    permutation: np.ndarray | None = None
    """int64 ``[positions]``: the position drawn at each step; None where they are drawn in natural order."""
    rule: StepRule | None = None
    """Gives every element its step, where a step may draw several."""

    @property
    def positions(self) -> int:
        return math.prod(self.grid)

    @property
    def length(self) -> int:
        if self.rule is not None:
            return self.rule.length(self.grid)
        return self.positions * self.steps_per_position

    @property
    def by_channel(self) -> bool:
        """Whether the channels of a position are drawn one after the other."""
        return self.name in ("raster-subpixel", "time-channels")

    @property
    def is_sequence(self) -> bool:
        """Whether positions are times, of which there may be any number."""
        return self.name in ("time", "time-channels")

    @property
    def steps_per_position(self) -> int:
        return self.channels if self.by_channel else 1

    @property
    def has_frames(self) -> bool:
        """Whether the event is a video whose frames are drawn one after the other."""
        return self.regular and len(self.grid) == 3

    @cached_property
    def steps(self) -> np.ndarray:
        """``steps[c, p]`` is the step that draws channel c of position p."""
        if self.rule is not None:
            return self.rule.steps(self.channels, self.grid)
        natural = np.arange(self.positions, dtype=np.int64)
        if self.by_channel:
            return natural[None] * self.channels + np.arange(self.channels)[:, None]
        steps = natural if self.permutation is None else np.argsort(self.permutation)
        return np.tile(steps, (self.channels, 1))

    @cached_property
    def draws(self) -> list[list[tuple[int, int, int]]]:
        """``draws[t]`` lists what step t draws: (first channel, channels, position), by first channel and position.

        Neighbouring channels of a position are drawn at once where they have the same step.
        """
        channel, position = np.nonzero(self._begins)
        last, counts = np.full(self.positions, self.channels), np.zeros_like(self.steps)
        for c in reversed(range(self.channels)):
            counts[c] = last - c
            last = np.where(self._begins[c], c, last)
        step = self.steps[channel, position]
        found: list[list[tuple[int, int, int]]] = [[] for _ in range(self.length)]
        for i in np.lexsort((position, channel, step)).tolist():
            c, p = int(channel[i]), int(position[i])
            found[step[i]].append((c, int(counts[c, p]), p))
        return found

    @property
    def row_width(self) -> int:
        """Cells of a row in a flattened image: those of its draws, one after the other."""
        return self.row_length if self.rule is None else self.grid[-1]

    @property
    def channel_runs(self) -> list[tuple[int, int]]:
        """(First channel, channels) of neighbouring channels that are drawn at once at every position."""
        first = [*np.flatnonzero(self._begins.any(1)).tolist(), self.channels]
        return [(c, end - c) for c, end in itertools.pairwise(first)]

    @property
    def _begins(self) -> np.ndarray:
        """Booleans ``[C, P]``: whether the channel before it, if there is one, has another step."""
        return np.concatenate([np.ones_like(self.steps[:1], bool), self.steps[1:] != self.steps[:-1]])

    def at(self, event_shape: Sequence[int]) -> Order:
        """Returns the order of this name for another event; a permutation is for its own event only."""
        given = self.name if self.rule is None else self.rule
        return self if tuple(event_shape) == self.event_shape else make_order(given, event_shape)

    def coordinates(self, position: int) -> tuple[int, ...]:
        """Returns the coordinates of a position in the grid."""
        return tuple(int(i) for i in np.unravel_index(position, self.grid))


def event_grid(event_shape: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """Channels and grid of an event: ``(C, T, H, W)`` videos, ``(C, H, W)`` images, ``(T,)`` or ``(C, T)`` sequences,
    ``(D,)`` features.

    Raises:
        ValueError: the shape has another number of dimensions, or a size that is no integer of 1 or more.
    """
    sizes = [isinstance(n, Integral) and not isinstance(n, bool) and n >= 1 for n in event_shape]
    if not (1 <= len(sizes) <= 4 and all(sizes)):
        allowed = "(C, T, H, W), (C, H, W), (C, T), (T,) or (D,) with positive sizes"
        raise ValueError(f"event_shape must be {allowed}, got {tuple(event_shape)}")
    if math.prod(event_shape) > MOST_ELEMENTS:
        raise ValueError(f"event_shape must have at most {MOST_ELEMENTS} elements, got {tuple(event_shape)}")
    sizes = tuple(int(n) for n in event_shape)
    return (1, sizes) if len(sizes) == 1 else (sizes[0], sizes[1:])


def make_order(order: str | StepRule | Sequence[int] | np.ndarray, event_shape: Sequence[int]) -> Order:
    """Returns the order by name or rule, or a permutation of the positions: step t draws position ``order[t]``.

    Raises:
        ValueError: the name is unknown, does not suit ``event_shape``, or the permutation is none.
    """
    channels, grid = event_grid(tuple(event_shape))
    shape, positions = tuple(int(n) for n in event_shape), math.prod(grid)
    if isinstance(order, StepRule):
        order.check(shape, channels, grid)
        return Order(order.name, shape, channels, grid, order.row_length(grid), order.regular, rule=order)
    if not isinstance(order, str):
        found = _permutation(order, positions, shape)
        return Order("permutation", shape, channels, grid, positions, regular=False, permutation=found)
    if order not in ORDERS:
        raise ValueError(
            f"order must be one of {', '.join(map(repr, ORDERS))} or a permutation of the positions, or one of "
            f"fastgen.generate.{', '.join(rule.__name__ for rule in RULES.values())}, got {order!r}"
        )
    images = order.startswith("raster")
    if images and len(grid) < 2:
        raise ValueError(f"order {order!r} needs event_shape (C, H, W) or (C, T, H, W), got {tuple(event_shape)}")
    if not images and len(grid) != 1:
        raise ValueError(f"order {order!r} needs event_shape (T,), (C, T) or (D,), got {tuple(event_shape)}")
    if order == "features" and channels != 1:
        raise ValueError(f"order 'features' needs event_shape (D,), got {tuple(event_shape)}")
    width = grid[-1] if images else positions
    made = Order(order, shape, channels, grid, width, regular=order != "features")
    return replace(made, row_length=width * made.steps_per_position)


def _permutation(order: Sequence[int] | np.ndarray, positions: int, event_shape: Sequence[int]) -> np.ndarray:
    try:
        permutation = np.asarray(order).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"order must be a name or a permutation of the positions, got {order!r:.200}") from error
    whole = permutation.dtype.kind in "iu" and len(permutation) == positions
    if not whole or not np.array_equal(np.sort(permutation), np.arange(positions)):
        raise ValueError(
            f"order must be a permutation of the {positions} positions of {tuple(event_shape)}, got {order!r:.200}"
        )
    return permutation.astype(np.int64)
