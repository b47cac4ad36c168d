"""Conditions of a model, and the one rule by which every model reads its ``context`` argument.

A context is None (an unconditional model), a tensor (a model with one condition) or a dict of tensors with the
condition's name as the key: "class" int64 [N], "vector" float [N, D], "map" float [N, C, H, W], "frames" float [N, C,
F].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Context = Tensor | dict[str, Tensor] | None


@dataclass(frozen=True)
class Condition:
    """One tensor of a context: labels below ``classes``, or floats of ``shape`` (without the batch; None: any size)."""

    shape: tuple[int | None, ...] = ()
    classes: int = 0

    def check(self, name: str, value: Tensor) -> None:
        wanted = ("N", *("any" if size is None else size for size in self.shape))
        fits = value.dim() == len(wanted) and all(
            size in (None, given) for size, given in zip(self.shape, value.shape[1:], strict=True)
        )
        if not fits:
            raise ValueError(
                f"context {name!r} must have shape [{', '.join(map(str, wanted))}], got {tuple(value.shape)}"
            )
        if self.classes and value.dtype != torch.int64:
            raise ValueError(f"context {name!r} must be torch.int64, got {value.dtype}")
        if not self.classes and not value.is_floating_point():
            raise ValueError(f"context {name!r} must be floating point, got {value.dtype}")

    def check_values(self, name: str, value: Tensor) -> None:
        if self.classes and value.numel() and not (value.min() >= 0 and value.max() < self.classes):
            given = f"{int(value.min())} to {int(value.max())}"
            raise ValueError(f"context {name!r} must be from 0 to {self.classes - 1}, got {given}")

    def example(self, n: int, sizes: tuple[int, ...]) -> Tensor:
        return torch.zeros(n, *sizes, dtype=torch.int64 if self.classes else torch.float32)


def split_context(context: Context, conditions: dict[str, Condition], n: int | None = None) -> dict[str, Tensor]:
    """The tensors by name.

    Raises:
        ValueError: a condition is missing or not asked for, a tensor has the wrong shape or dtype, or (with ``n``, the
            size of the batch) another number of rows.
    """
    if context is None:
        given = {}
    elif isinstance(context, dict):
        given = context
    elif len(conditions) == 1:
        given = {next(iter(conditions)): context}
    else:
        takes = f"a dict with {', '.join(conditions)}" if conditions else "None"
        raise ValueError(f"context must be {takes}, got a tensor")
    if set(given) != set(conditions):
        raise ValueError(
            f"context must have {sorted(conditions) or 'nothing'}, as the model takes, got {sorted(given) or 'nothing'}"
        )
    for name, condition in conditions.items():
        condition.check(name, given[name])
        rows = len(given[name])
        if n is not None and rows != n:
            raise ValueError(f"context {name!r} must have a row for each of the {n} samples, got {rows} rows")
    return given


def check_context(context: Context, conditions: dict[str, Condition], n: int) -> None:
    """Raises ValueError for what ``split_context`` refuses for a batch of n, and for labels out of range."""
    for name, value in split_context(context, conditions, n).items():
        conditions[name].check_values(name, value)
