"""Rules that give every element of an event its step: elements of one step are drawn together."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastgen.generate.arguments import check_integer


class StepRule(abc.ABC):
    """An order of ``fastgen.Sampler`` in which a step may draw several elements.

    Elements of one step are independent given those of all earlier steps: the network reads none of them before all
    are drawn.
    """

    name: ClassVar[str]
    regular: ClassVar[bool]
    """Whether the steps are affine in the row and the column, so that the program does not grow with the event."""

    @abc.abstractmethod
    def check(self, event_shape: Sequence[int], channels: int, grid: tuple[int, ...]) -> None:
        """Raises ValueError unless the rule gives every element of such an event a step, and no step is empty."""

    @abc.abstractmethod
    def length(self, grid: tuple[int, ...]) -> int:
        """Returns the number of steps."""

    @abc.abstractmethod
    def steps(self, channels: int, grid: tuple[int, ...]) -> np.ndarray:
        """Returns the step of each element, int64 ``[channels, positions]``."""

    @abc.abstractmethod
    def to_config(self) -> list:
        """Returns the arguments as numbers and lists."""

    def row_length(self, grid: tuple[int, ...]) -> int:
        """Returns the steps from the first element of a row to that of the next; all of them where there is one row."""
        return self.length(grid)


class Groups(StepRule):
    """Draws the elements at the steps that an array gives; elements of one step are drawn together.

    The program is unrolled, so it grows with the event; sampling costs as many steps as the array has values.

    Args:
        steps: integers with the shape of the event's positions, such as ``[H, W]``, or of its elements, ``[C, H, W]``:
            0 for what is drawn first, and so on; every step up to the last draws something.

    Raises:
        ValueError: ``steps`` are no integers, negative, or leave one out.

    Example::

        >>> import torch, fastgen
        >>> halves = torch.nn.Conv1d(1, 3, 1)  # the second half of four elements sees the first
        >>> class Halves(torch.nn.Module):
        ...     def forward(self, x):
        ...         first = x[:, None, :2]
        ...         return torch.cat([torch.zeros(len(x), 3, 2), halves(first)], 2)
        >>> order = fastgen.generate.Groups([0, 0, 1, 1])
        >>> head = fastgen.heads.Categorical(3, to_input="unit")
        >>> sampler = fastgen.Sampler(Halves(), (4,), head, order=order)
        >>> sampler.steps
        2
        >>> torch.equal(sampler.sample(2, seed=0), sampler.sample_naive(2, seed=0))
        True
    """

    name, regular = "groups", False

    def __init__(self, steps) -> None:
        try:
            given = np.asarray(steps)
        except (TypeError, ValueError) as error:
            raise ValueError(f"steps must be an array of integers, got {steps!r:.200}") from error
        if given.dtype.kind not in "iu" or not given.size:
            raise ValueError(f"steps must be an array of integers, got {given.dtype} {list(given.shape)}")
        if given.min() < 0:
            raise ValueError(f"steps must be 0 or more, got {given.min()}")
        found = np.unique(given)
        if len(found) != found[-1] + 1:
            missing = int(np.flatnonzero(found != np.arange(len(found)))[0])
            raise ValueError(f"steps must be 0 .. {found[-1]}, each for some element, got none of step {missing}")
        self._steps = given.astype(np.int64)

    def check(self, event_shape, channels, grid) -> None:
        if self._steps.shape not in (grid, (channels, *grid)):
            allowed = " or ".join(str(list(shape)) for shape in dict.fromkeys((grid, (channels, *grid))))
            raise ValueError(
                f"order must be Groups of shape {allowed} for event_shape {tuple(event_shape)}, got shape "
                f"{list(self._steps.shape)}"
            )

    def length(self, grid) -> int:
        return int(self._steps.max()) + 1

    def steps(self, channels, grid) -> np.ndarray:
        return np.broadcast_to(self._steps, (channels, *grid)).reshape(channels, -1).copy()

    def to_config(self) -> list:
        return self._steps.tolist()

    def __repr__(self) -> str:
        return f"Groups({list(self._steps.shape)}, {self.length(())} steps)"


@dataclass(frozen=True)
class Wavefront(StepRule):
    """Draws the pixel in row r and column c of an image at step ``row * r + column * c``, all its channels at once.

    The network may see, for a pixel, what lies on earlier fronts: with the default ``2 r + c``, the pixels above up to
    one column to the right, and those to the left. An image of H x W takes ``row (H - 1) + column (W - 1) + 1`` steps
    instead of H W. The program does not grow with the image.

    Args:
        row, column: steps from a row, and from a column, to the next.

    Raises:
        ValueError: a number is no integer of 1 or more; or, for an event, it is no image, or some step draws nothing.

    Example::

        >>> import torch, fastgen
        >>> model = fastgen.nn.MaskedConv2d(1, 4, 3, mask="A")  # sees (r, c - 1) and (r - 1, c - 1 .. c + 1)
        >>> head = fastgen.heads.Categorical(4, to_input="unit")
        >>> sampler = fastgen.Sampler(model, (1, 6, 5), head, order=fastgen.generate.Wavefront(2, 1))
        >>> sampler.steps
        15
        >>> torch.equal(sampler.sample(2, seed=0), sampler.sample_naive(2, seed=0))
        True
    """

    row: int = 2
    column: int = 1
    name, regular = "wavefront", True

    def __post_init__(self) -> None:
        for name in ("row", "column"):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), 1))

    def check(self, event_shape, channels, grid) -> None:
        if len(grid) != 2:
            raise ValueError(f"order {self} needs event_shape (C, H, W), got {tuple(event_shape)}")
        (height, width), ones = grid, (self.row == 1, self.column == 1)
        by_rows = ones[1] and (height == 1 or width >= self.row)
        by_columns = ones[0] and (width == 1 or height >= self.column)
        if max(grid) > 1 and not (by_rows or by_columns):
            raise ValueError(f"order {self} draws nothing at some step of an image {height} x {width}; every step must")

    def length(self, grid) -> int:
        return self.row * (grid[0] - 1) + self.column * (grid[1] - 1) + 1

    def steps(self, channels, grid) -> np.ndarray:
        row, column = np.indices(grid, dtype=np.int64)
        return np.tile((self.row * row + self.column * column).reshape(-1), (channels, 1))

    def to_config(self) -> list:
        return [self.row, self.column]

    def row_length(self, grid) -> int:
        return self.row


class Delayed(StepRule):
    """Draws codebook k of time t at step ``t + delays[k]``: the delay pattern of tokens of several codebooks.

    The network may see, for codebook k at time t, every token of an earlier step: of codebook j those of times before
    ``t + delays[k] - delays[j]``. An event of T times takes ``T + max(delays)`` steps.

    Args:
        delays: an integer of 0 or more for each codebook, a channel of the event; the least is 0. MusicGen has
            0, 1, 2, ...; codebooks that follow one another within a time want no delay but steps of their own.

    Raises:
        ValueError: ``delays`` are no such integers; or, for an event, there is not one for each channel, or some step
            draws nothing.

    Paper: Copet et al. 2023, Simple and Controllable Music Generation.

    Example::

        >>> import torch, fastgen
        >>> class Pair(torch.nn.Module):  # the second codebook sees the first one's token of the same time
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.out = torch.nn.Conv1d(1, 4, 1)
        ...     def forward(self, x):  # [N, 2, T] to logits [N, 2, 4, T]
        ...         before = torch.nn.functional.pad(x, (1, -1))
        ...         return torch.stack([self.out(before[:, :1]), self.out(x[:, :1])], 1)
        >>> head = fastgen.heads.Categorical(4, to_input="unit")
        >>> sampler = fastgen.Sampler(Pair(), (2, 10), head, order=fastgen.generate.Delayed([0, 1]))
        >>> sampler.steps
        11
        >>> torch.equal(sampler.sample(2, seed=0), sampler.sample_naive(2, seed=0))
        True
    """

    name, regular = "delayed", True

    def __init__(self, delays: Sequence[int]) -> None:
        if isinstance(delays, str) or not isinstance(delays, Sequence | np.ndarray) or not len(delays):
            raise ValueError(f"delays must be a list of integers, one for each codebook, got {delays!r:.100}")
        self._delays = tuple(check_integer("delays", delay, 0) for delay in delays)
        if min(self._delays):
            raise ValueError(f"delays must begin with 0 for some codebook, got {list(self._delays)}")

    def check(self, event_shape, channels, grid) -> None:
        if len(grid) != 1 or channels != len(self._delays):
            raise ValueError(f"order {self} needs event_shape ({len(self._delays)}, T), got {tuple(event_shape)}")
        if any(b - a > grid[0] for a, b in itertools.pairwise(sorted(self._delays))):
            raise ValueError(f"order {self} draws nothing at some step of {grid[0]} times; every step must")

    def length(self, grid) -> int:
        return grid[0] + max(self._delays)

    def steps(self, channels, grid) -> np.ndarray:
        return np.arange(grid[0], dtype=np.int64)[None] + np.array(self._delays, np.int64)[:, None]

    def to_config(self) -> list:
        return list(self._delays)

    def __repr__(self) -> str:
        return f"Delayed({list(self._delays)})"


def multiscale(height: int, width: int, coarsest: int | tuple[int, int] = 1) -> Groups:
    """Returns the groups of parallel multiscale generation: resolution doubles, in three steps.

    First the pixels of the ``coarsest`` image, which is every s-th pixel of every s-th row, one by one in raster order.
    Then every doubling draws the pixels between in three groups, each at one step: those right of the known ones, those
    below, those diagonally below. With a coarsest image of h x w pixels that takes ``h w + 3 log2(height / h)`` steps.

    Args:
        height, width: of the image.
        coarsest: its size at the coarsest resolution, one number for both or (h, w); height / h and width / w must be
            one power of two.

    Raises:
        ValueError: a size is no integer of 1 or more, or the sizes do not double to height and width.

    Paper: Reed et al. 2017, Parallel Multiscale Autoregressive Density Estimation.

    Example::

        >>> fastgen.generate.multiscale(4, 4).to_config()
        [[0, 4, 1, 4], [5, 6, 5, 6], [2, 4, 3, 4], [5, 6, 5, 6]]
    """
    size = tuple(check_integer(name, n, 1) for name, n in (("height", height), ("width", width)))
    sizes = coarsest if isinstance(coarsest, tuple | list) else (coarsest, coarsest)
    if len(sizes) != 2:
        raise ValueError(f"coarsest must be an integer or (h, w), got {coarsest!r:.100}")
    rows, columns = (check_integer("coarsest", n, 1) for n in sizes)
    stride = size[0] // rows
    if (stride * rows, stride * columns) != size or stride & (stride - 1):
        raise ValueError(f"coarsest must double to ({size[0]}, {size[1]}), got ({rows}, {columns})")
    steps = np.zeros(size, np.int64)
    steps[::stride, ::stride] = np.arange(rows * columns).reshape(rows, columns)
    step = rows * columns
    while stride > 1:
        half = stride // 2
        for number, (row, column) in enumerate(((0, half), (half, 0), (half, half))):
            steps[row::stride, column::stride] = step + number
        step, stride = step + 3, half
    return Groups(steps)


RULES: dict[str, type[StepRule]] = {rule.name: rule for rule in (Groups, Wavefront, Delayed)}


def rule_from_config(name: str, arguments: list) -> StepRule:
    """Returns the rule of a name and of its ``to_config``.

    Raises:
        ValueError: there is no rule of this name, or it does not take these arguments.
    """
    if name not in RULES or not isinstance(arguments, list):
        raise ValueError(f"order must be one of {', '.join(RULES)} with its arguments, got {name!r:.100}")
    try:
        return Wavefront(*arguments) if name == Wavefront.name else RULES[name](arguments)
    except TypeError as error:
        raise ValueError(f"order {name!r} must have its own arguments, got {arguments!r:.100}") from error
