"""The result of every data source: levels or real vectors, optional labels, named splits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastgen.data.standardization import Standardization
from fastgen.fields import check_fields, one_line, parse_object

SPLITS = ("train", "validation", "test")

Kind = Literal["image", "audio", "vector"]


@dataclass(frozen=True)
class Split:
    """``values``: levels, uint8, or real numbers, float32, ``[N, *event_shape]``; ``labels``: int64 ``[N]`` or None."""

    values: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """The examples at ``indices``, levels as int64, and their labels."""
        chosen = self.values[indices]
        chosen = chosen if chosen.is_floating_point() else chosen.long()
        return chosen, None if self.labels is None else self.labels[indices]


@dataclass(frozen=True)
class Description:
    """The description of data that samples of a model are shown by; the fields are those of ``Dataset``."""

    name: str
    kind: Kind
    event_shape: tuple[int, ...]
    levels: int
    classes: tuple[str, ...] = ()
    sample_rate: int | None = None
    columns: tuple[str, ...] = ()
    standardization: Standardization | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> Description:
        """The description that ``to_json`` wrote. Raises ValueError for another text."""
        try:
            values = parse_object(text, "it")
            if (given := values.get("standardization")) is not None:
                values["standardization"] = Standardization(**check_fields(Standardization, given))
            description = cls(**check_fields(cls, values))
        except ValueError as error:
            raise ValueError(f"the description of the data cannot be read: {one_line(error)}") from error
        description._check()
        return description

    def _check(self) -> None:
        sizes = [*self.event_shape, 1 if self.sample_rate is None else self.sample_rate]
        if not self.event_shape or min(sizes) < 1 or math.prod(self.event_shape) > 1 << 40 or self.levels < 0:
            raise ValueError(
                "the description of the data cannot be read: event_shape and sample_rate must be positive, levels 0 or "
                f"more, got {self.event_shape!r:.100}, {self.sample_rate}, {self.levels}"
            )
        rows = self.standardization
        if rows is not None and not (len(rows.mean) == len(rows.scale) == self.event_shape[0] and min(rows.scale) > 0):
            raise ValueError(
                "the description of the data cannot be read: standardization must have a mean and a scale above 0 of "
                f"each of {self.event_shape[0]} columns"
            )

    def check_like(self, other: Description, source: str) -> None:
        """Raises ValueError unless ``source``, read again, gives data of the same kind and form as ``other``."""
        for name in ("kind", "event_shape", "levels", "classes", "sample_rate", "columns"):
            now, before = getattr(self, name), getattr(other, name)
            if now != before:
                raise ValueError(
                    f"the data source {source} has changed since the run was trained: its {name.replace('_', ' ')} "
                    f"must be {before!r}, got {now!r}"
                )


@dataclass(frozen=True)
class Dataset:
    """Examples on a grid of ``levels`` values, or real vectors (``levels`` 0).

    ``event_shape`` is ``(C, H, W)`` for images, ``(T,)`` for mu-law audio, which has a ``sample_rate`` in Hz, and
    ``(D,)`` for vectors, which have names of their ``columns``, are standardised as ``standardization`` says, and may
    know their true ``log_density`` (float64 points ``[N, D]`` in the data's units to nats ``[N]``). ``classes`` names
    the labels; it is empty where the data has none. Raises ValueError where a split is missing or empty, has another
    shape, or holds a level or label out of range.
    """

    name: str
    kind: Kind
    event_shape: tuple[int, ...]
    levels: int
    splits: dict[str, Split]
    classes: tuple[str, ...] = ()
    sample_rate: int | None = None
    columns: tuple[str, ...] = ()
    standardization: Standardization | None = None
    log_density: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        for name in SPLITS:
            where = f"data {self.name!r}, split {name!r}"
            if not len(self.splits.get(name, ())):
                raise ValueError(f"data {self.name!r}: the split {name!r} is empty; more examples are needed")
            split = self.splits[name]
            if tuple(split.values.shape[1:]) != self.event_shape:
                raise ValueError(
                    f"{where}: examples must have shape {self.event_shape}, got {tuple(split.values.shape[1:])}"
                )
            if split.values.is_floating_point() == bool(self.levels):
                wanted = f"integers below {self.levels}" if self.levels else "floating point"
                raise ValueError(f"{where}: values must be {wanted}, got {split.values.dtype}")
            if self.levels and (highest := int(split.values.max())) >= self.levels:
                raise ValueError(f"{where}: levels must be from 0 to {self.levels - 1}, got {highest}")
            if self.classes and (
                split.labels is None or not 0 <= split.labels.min() <= split.labels.max() < len(self.classes)
            ):
                raise ValueError(f"{where}: every example must have a label from 0 to {len(self.classes) - 1}")

    @property
    def description(self) -> Description:
        return Description(
            self.name,
            self.kind,
            self.event_shape,
            self.levels,
            self.classes,
            self.sample_rate,
            self.columns,
            self.standardization,
        )

    @property
    def dimensions(self) -> int:
        return int(np.prod(self.event_shape))

    def in_own_units(self, log_prob: Tensor) -> Tensor:
        """Log-densities of examples as they are in the splits, as those of the same in the data's own units."""
        return log_prob if self.standardization is None else log_prob + self.standardization.log_det


def partition(count: int, validation: float = 0.1, test: float = 0.1) -> dict[str, np.ndarray]:
    """Indices 0..count-1 in three disjoint sets, the same for the same count: shuffled once, one at least in each."""
    if count < len(SPLITS):
        raise ValueError(
            f"data must have at least {len(SPLITS)} examples, to hold out a validation and a test set, got {count}"
        )
    order = np.random.default_rng(0).permutation(count)
    tests, validations = max(1, round(test * count)), max(1, round(validation * count))
    return {
        "train": np.sort(order[tests + validations :]),
        "validation": np.sort(order[tests : tests + validations]),
        "test": np.sort(order[:tests]),
    }


def quantise(images: np.ndarray, levels: int) -> Tensor:
    """uint8 values 0..255 to ``levels`` levels of equal width: ``floor(value * levels / 256)``."""
    if not 2 <= levels <= 256:
        raise ValueError(f"levels must be from 2 to 256, got {levels}")
    return torch.from_numpy((images.astype(np.uint16) * levels // 256).astype(np.uint8))
