"""What every data source returns: integer levels, optional labels, named splits."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """``levels``: uint8 ``[N, *event_shape]``; ``labels``: int64 ``[N]`` or None."""

    levels: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.levels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """The examples at ``indices``: int64 levels and labels."""
        return self.levels[indices].long(), None if self.labels is None else self.labels[indices]


@dataclass(frozen=True)
class Description:
    """What is needed to show samples of a model without its data; the fields are those of ``Dataset``."""

    name: str
    kind: Literal["image", "audio"]
    event_shape: tuple[int, ...]
    levels: int
    classes: tuple[str, ...] = ()
    sample_rate: int | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Description:
        values = json.loads(text)
        return cls(**values | {"event_shape": tuple(values["event_shape"]), "classes": tuple(values["classes"])})


@dataclass(frozen=True)
class Dataset:
    """Real data on a grid of ``levels`` values.

    ``event_shape`` is ``(C, H, W)`` for images and ``(T,)`` for mu-law audio, which has a ``sample_rate`` in Hz.
    ``classes`` names the labels; it is empty where the data has none. Raises ValueError where a split is missing or
    empty, has another shape, or holds a level or label out of range.
    """

    name: str
    kind: Literal["image", "audio"]
    event_shape: tuple[int, ...]
    levels: int
    splits: dict[str, Split]
    classes: tuple[str, ...] = ()
    sample_rate: int | None = None

    def __post_init__(self) -> None:
        for name in SPLITS:
            if not len(self.splits.get(name, ())):
                raise ValueError(f"data {self.name!r}: the split {name!r} is empty; more examples are needed")
            split = self.splits[name]
            if tuple(split.levels.shape[1:]) != self.event_shape:
                raise ValueError(
                    f"data {self.name!r}, split {name!r}: shape {tuple(split.levels.shape[1:])}, not {self.event_shape}"
                )
            if (highest := int(split.levels.max())) >= self.levels:
                raise ValueError(
                    f"data {self.name!r}, split {name!r}: level {highest} where 0 to {self.levels - 1} are allowed"
                )
            if self.classes and (
                split.labels is None or not 0 <= split.labels.min() <= split.labels.max() < len(self.classes)
            ):
                raise ValueError(
                    f"data {self.name!r}, split {name!r}: every example needs a label of 0 to {len(self.classes) - 1}"
                )

    @property
    def description(self) -> Description:
        return Description(self.name, self.kind, self.event_shape, self.levels, self.classes, self.sample_rate)

    @property
    def dimensions(self) -> int:
        return int(np.prod(self.event_shape))


def partition(count: int, validation: float = 0.1, test: float = 0.1) -> dict[str, np.ndarray]:
    """Indices 0..count-1 in three disjoint sets, the same for the same count: shuffled once, one at least in each."""
    if count < len(SPLITS):
        raise ValueError(
            f"{count} examples found; at least {len(SPLITS)} are needed to hold out a validation and a test set"
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
        raise ValueError(f"levels is {levels}; 2 to 256 are allowed")
    return torch.from_numpy((images.astype(np.uint16) * levels // 256).astype(np.uint8))
