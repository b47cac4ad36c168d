"""Generation orders: which step draws which element of the event."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ORDERS = ("raster", "raster-subpixel", "time", "features")


@dataclass(frozen=True)
class Order:
    """``steps[c, p]`` is the step that draws channel c of position p (positions in natural order).

    ``row_length`` is the number of steps in a row of the image; a sequence is one row. ``regular`` orders have programs
    whose size does not depend on the event's size; an arbitrary permutation is unrolled.
    """

    name: str
    steps: np.ndarray
    row_length: int
    regular: bool

    @property
    def length(self) -> int:
        return int(self.steps.max()) + 1 if self.steps.size else 0


def event_grid(event_shape: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """Channels and grid of an event: ``(C, H, W)`` images, ``(T,)`` or ``(C, T)`` sequences, ``(D,)`` features.

    Raises:
        ValueError: the shape has another number of dimensions, or a size below 1.
    """
    if not 1 <= len(event_shape) <= 3 or any(int(n) != n or n < 1 for n in event_shape):
        raise ValueError(
            f"event_shape must be (C, H, W), (C, T), (T,) or (D,) with positive sizes, got {tuple(event_shape)}"
        )
    if len(event_shape) == 1:
        return 1, tuple(event_shape)
    return event_shape[0], tuple(event_shape[1:])


def make_order(order: str | Sequence[int] | np.ndarray, event_shape: Sequence[int]) -> Order:
    """The order by name, or a permutation of the positions: ``order[t]`` is the position drawn at step t.

    Raises:
        ValueError: the name is unknown, does not suit ``event_shape``, or the permutation is none.
    """
    channels, grid = event_grid(event_shape)
    positions = math.prod(grid)
    natural = np.arange(positions, dtype=np.int64)
    if not isinstance(order, str):
        permutation = np.asarray(order, dtype=np.int64).reshape(-1)
        if not np.array_equal(np.sort(permutation), natural):
            raise ValueError(
                f"order must be a permutation of the {positions} positions of {tuple(event_shape)}, got {order!r}"
            )
        steps = np.empty(positions, dtype=np.int64)
        steps[permutation] = natural
        return Order("permutation", np.tile(steps, (channels, 1)), positions, regular=False)
    if order not in ORDERS:
        raise ValueError(
            f"order must be one of {', '.join(map(repr, ORDERS))} or a permutation of the positions, got {order!r}"
        )
    images = order.startswith("raster")
    if images and len(grid) != 2:
        raise ValueError(f"order {order!r} needs event_shape (C, H, W), got {tuple(event_shape)}")
    if not images and len(grid) != 1:
        raise ValueError(f"order {order!r} needs event_shape (T,), (C, T) or (D,), got {tuple(event_shape)}")
    if order == "features" and channels != 1:
        raise ValueError(f"order 'features' needs event_shape (D,), got {tuple(event_shape)}")
    if order == "raster-subpixel":
        steps = natural[None] * channels + np.arange(channels)[:, None]
        return Order(order, steps, grid[1] * channels, regular=True)
    row_length = grid[1] if images else positions
    return Order(order, np.tile(natural, (channels, 1)), row_length, regular=order != "features")
