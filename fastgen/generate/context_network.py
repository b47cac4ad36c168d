"""The context network runs in PyTorch at the start: operators that depend on contexts only and fit no program."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from fastgen.fields import one_line
from fastgen.generate.contexts import in_float32

MOST = 1 << 28
"""Numbers in a result of a call, of a network from a file or for another number of positions than the example's."""


@dataclass(frozen=True)
class Reference:
    """The value of an input, a tensor or an earlier call, by name."""

    name: str


@dataclass(frozen=True)
class Extent:
    """An integer that follows from the number of positions of the context: ``offset + stride * positions``."""

    offset: int
    stride: int

    def at(self, positions: int) -> int:
        return self.offset + self.stride * positions


@dataclass(frozen=True)
class Call:
    """``name = operator(*arguments, **options)``; tensors among the arguments are references."""

    name: str
    operator: Callable
    arguments: list
    options: dict

    def __reduce__(self) -> tuple:
        """Operators are pickled by name."""
        path = None if self.operator is operator.getitem else str(self.operator)
        return _named, (self.name, path, self.arguments, self.options)

    @property
    def reads(self) -> set[str]:
        return {leaf.name for leaf in tree_leaves((self.arguments, self.options)) if isinstance(leaf, Reference)}


def _named(name: str, path: str | None, arguments: list, options: dict) -> Call:
    found = operator.getitem if path is None else operator.attrgetter(path)(torch.ops)
    return Call(name, found, arguments, options)


@dataclass(frozen=True)
class Result:
    """A value that the program reads as a context, and how its dimensions lie.

    Dimension ``batch`` holds both samples, one after the other; ``channel`` is the dimension of the channels (None: one
    channel); the others are positions.
    """

    name: str
    batch: int
    channel: int | None

    def arranged(self, value: Tensor) -> Tensor:
        """``[2, *positions, C]``"""
        value = value.unflatten(self.batch, (2, -1)).movedim(self.batch, 0)
        if self.channel is None:
            return value.unsqueeze(-1)
        channel = self.channel + (1 if self.channel > self.batch else 0)
        return value.movedim(channel if channel > self.batch else channel + 1, -1)

    def restored(self, arranged: Tensor) -> Tensor:
        """Undoes ``arranged``."""
        if self.channel is None:
            value = arranged.squeeze(-1)
        else:
            channel = self.channel + (1 if self.channel > self.batch else 0)
            value = arranged.movedim(-1, channel if channel > self.batch else channel + 1)
        return value.movedim(0, self.batch).flatten(self.batch, self.batch + 1)


@dataclass
class ContextNetwork:
    """Calls of ATen operators on the contexts of a batch of two, whose results are further contexts of the program."""

    inputs: list[str]
    """The names of the contexts."""
    tensors: dict[str, Tensor]
    """Parameters and what is computed of them alone."""
    calls: list[Call]
    results: list[Result]
    sizes: list[tuple[int, int]]
    """Positions and channels of every result, for contexts like the example."""
    free: tuple[int, int] | None = None
    """The context and its dimension whose size ``Extent`` follows; None where all contexts have the example's size."""

    @torch.no_grad()
    def run(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Returns the results ``[N, positions, C]`` of contexts ``[N, ...]``.

        Every sample runs by itself, twice in a batch of two, on one thread: so its results are bitwise the same in any
        batch. Where one row stands for all samples it runs once.
        """
        count = len(leaves[0])
        self._check_sizes(leaves)
        rows = 1 if all(leaf.stride(0) == 0 for leaf in leaves) else count
        try:
            with _one_thread():
                made = [self._sample([leaf[i : i + 1] for leaf in leaves]) for i in range(rows)]
        except (IndexError, RuntimeError) as error:
            raise ValueError(f"context is none that its network reads: {one_line(error)}") from error
        results = [torch.stack(values) for values in zip(*made, strict=True)]
        if not all(bool(torch.isfinite(result).all()) for result in results):
            raise ValueError("context gives NaN or infinite values in the network that reads it")
        return [result.expand(count, -1, -1).contiguous() for result in results]

    def _sample(self, leaves: list[Tensor]) -> list[Tensor]:
        values = self.values([leaf.expand(2, *leaf.shape[1:]).contiguous() for leaf in leaves])
        return [in_float32(result.arranged(values[result.name])[0].flatten(0, -2)) for result in self.results]

    def values(self, leaves: Sequence[Tensor], check: Callable | None = None) -> dict[str, Tensor]:
        """Returns the results of contexts ``[2, ...]`` by name; ``check`` is called with what every call returns."""
        values = self.tensors | dict(zip(self.inputs, leaves, strict=True))
        positions = 0 if self.free is None else leaves[self.free[0]].shape[self.free[1]]
        kept = {result.name for result in self.results}
        last = {name: number for number, call in enumerate(self.calls) for name in call.reads}
        for number, call in enumerate(self.calls):
            with torch.autocast("cpu", enabled=False):
                values[call.name] = _called(call, values, positions)
            if check is not None:
                check(values[call.name])
            for name in call.reads - kept:
                if last[name] == number:
                    del values[name]
        return {name: values[name] for name in kept}

    def dry_run(self, leaves: Sequence[Tensor]) -> list[tuple[int, int]]:
        """Returns ``sizes`` for contexts of these shapes, without memory; raises what the operators raise."""
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            inputs = [torch.empty((2, *leaf.shape[1:]), dtype=leaf.dtype) for leaf in leaves]
            values = self.values(inputs, check_size)
        return self.measured(values)

    def _check_sizes(self, leaves: Sequence[Tensor]) -> None:
        """Raises ValueError where the calls do not go together for so many positions, or take too much memory."""
        if self.free is None:
            return
        try:
            self.dry_run(leaves)
        except Exception as error:  # of the operators, which raise what they like
            positions = leaves[self.free[0]].shape[self.free[1]]
            raise ValueError(
                f"context has {positions} positions, for which the network that reads it does not run: "
                f"{one_line(error)}"
            ) from error

    def measured(self, values: Mapping[str, Tensor]) -> list[tuple[int, int]]:
        """``sizes``, from tensors of the results' shapes."""
        arranged = [result.arranged(values[result.name])[0] for result in self.results]
        return [(part[..., 0].numel(), part.shape[-1]) for part in arranged]


def _called(call: Call, values: Mapping[str, Tensor], positions: int):
    def given(leaf):
        if isinstance(leaf, Extent):
            return leaf.at(positions)
        return values[leaf.name] if isinstance(leaf, Reference) else leaf

    arguments, options = tree_map(given, (call.arguments, call.options))
    return call.operator(*arguments, **options)


def check_size(value) -> None:
    """Raises ValueError where what a call returns has more than ``MOST`` numbers."""
    for part in value if isinstance(value, tuple | list) else [value]:
        if isinstance(part, Tensor) and part.numel() > MOST:
            raise ValueError(f"a result has the shape {list(part.shape)}; it may have {MOST} numbers")


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
