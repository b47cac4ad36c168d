"""The records of the dependency graph: nodes, runs of their channels, pieces that readers take, and constants."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BATCH = 2
"""Samples of the batch at which a network is analysed: what depends on two of them mixes samples."""


@dataclass(frozen=True)
class Recipe:
    """Float32 values made from the graph's folded constants: ``function(*[constants[s] for s in sources])``."""

    sources: tuple[str, ...]
    function: Callable[..., Tensor]

    def __call__(self, constants: dict[str, Tensor]) -> Tensor:
        return self.function(*[constants[s] for s in self.sources]).to(torch.float32)


def same_values(a: Recipe, b: Recipe, constants: dict[str, Tensor]) -> bool:
    """Whether two recipes give the same values, whatever those of the constants are."""
    if a is b or a.sources != b.sources:
        return a is b
    probes = []
    for number, name in enumerate(a.sources):
        shape = constants[name].shape
        probes.append((torch.arange(shape.numel(), dtype=torch.float64) * 0.37 + number).sin().reshape(shape) + 2)
    first, second = a.function(*probes), b.function(*probes)
    return first.shape == second.shape and torch.equal(first, second)


@dataclass(frozen=True)
class Constant:
    """A tensor that depends on no input, and how to make it again when the parameters change."""

    tensor: Tensor
    recipe: Recipe

    @classmethod
    def literal(cls, value: float | Tensor) -> Constant:
        tensor = torch.as_tensor(value)
        return cls(tensor, Recipe((), lambda: tensor))


def derive(function: Callable[..., Tensor], *constants: Constant) -> Constant:
    """``function(*constants)`` as a constant."""
    counts = [len(c.recipe.sources) for c in constants]

    def made(*sources: Tensor) -> Tensor:
        inputs, start = [], 0
        for constant, count in zip(constants, counts, strict=True):
            inputs.append(constant.recipe.function(*sources[start : start + count]))
            start += count
        return function(*inputs)

    sources = tuple(s for c in constants for s in c.recipe.sources)
    return Constant(function(*[c.tensor for c in constants]), Recipe(sources, made))


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the input: the ids of its elements, the least and the greatest number among them."""

    ids: Tensor
    low: float = -math.inf
    high: float = math.inf

    @property
    def shape(self) -> torch.Size:
        return self.ids.shape


@dataclass(eq=False)
class Piece:
    """For every row r of the reader: ``length`` slots of ``node`` from (``rows[r]``, ``slots[r]``) on.

    Nothing where ``rows[r]`` is -1.
    """

    node: Node
    rows: np.ndarray
    slots: np.ndarray
    stride: int
    length: int
    _touched: tuple[list[ChannelRun], list[int]] | None = None

    def source_runs(self) -> list[ChannelRun]:
        """Returns the runs of ``node`` that the piece touches.

        It is one, unless the piece is the whole operand of a reduction, or terms were joined.
        """
        return [self.node.runs[number] for number in self.source_numbers()]

    def source_numbers(self) -> list[int]:
        """Returns the numbers, among the runs of ``node``, of those that the piece touches."""
        if self._touched is None or self._touched[0] is not self.node.runs:
            slots = self.slots[self.rows >= 0]
            if not self.varies:
                slots = int(slots[0]) + self.stride * np.arange(self.length) if len(slots) else slots
            self._touched = self.node.runs, np.unique(self.node.run_of_slot[slots]).tolist()
        return self._touched[1]

    @property
    def varies(self) -> bool:
        """Whether the rows read different slots (after a pixel shuffle, say)."""
        slots = self.slots[self.rows >= 0]
        return bool((slots != slots[:1]).any())

    @property
    def pointwise(self) -> bool:
        rows = self.rows
        return len(rows) == self.node.rows and bool(((rows == np.arange(len(rows))) | (rows < 0)).all())


@dataclass(eq=False)
class Term:
    """One summand of a contraction: a piece and the rows of the weight matrix that its channels meet.

    An ``index`` term reads one number v and stands for row ``weight_rows[v]``.
    """

    piece: Piece
    weight_rows: np.ndarray
    index: bool = False


@dataclass(eq=False)
class KeyRows:
    """The rows of a node that attention reads: ``rows[n, s]`` is that of key s of sample n.

    It reads ``length`` channels, from ``slot`` on.
    """

    node: Node
    rows: np.ndarray
    slot: int
    length: int

    def read_by(self, readers: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """Returns the rows that some rows (bool ``[rows of the reader]``) read, sorted."""
        samples = zip(self.rows, np.split(readers, len(self.rows)), strict=True)
        return np.unique(np.concatenate([keys[seen[chosen].any(0)] for keys, chosen in samples]))

    def latest(self, seen: np.ndarray) -> np.ndarray:
        """Returns for every row of the reader, sample by sample, the last row among those that it reads; or -1.

        ``seen[t, s]``: whether query t reads key s.
        """
        ready = np.max([run.ready for run in self.node.runs], 0)
        rows = []
        for keys in self.rows:
            latest = np.where(seen, ready[keys].astype(np.int64), -1).argmax(1)
            rows.append(np.where(seen.any(1), keys[latest], -1))
        return np.concatenate(rows).astype(np.int32)


@dataclass(eq=False)
class ScoreStep:
    """One operation of a lane program over the keys: of the score so far, and of ``piece`` where there is one.

    At query t, key s and head h the piece, which is whole rows, gives channel ``offset + query_stride * t + key_stride
    * s + head_stride * h``; ``swapped``: it is the first operand.
    """

    opcode: str
    x: float = 0.0
    y: float = 0.0
    piece: Piece | None = None
    offset: int = 0
    query_stride: int = 0
    key_stride: int = 0
    head_stride: int = 0
    swapped: bool = False


@dataclass(eq=False)
class Attention:
    """Attention of a node's rows, sample by sample: how the values of all heads are weighed.

    ``queries`` gives the reader's rows the queries of all heads; ``seen[t, s]``: whether query t sees key s. ``least``:
    what the greatest score of a query must reach.
    """

    heads: int
    groups: int
    queries: Piece
    keys: KeyRows
    values: KeyRows
    seen: np.ndarray
    scores: list[ScoreStep]
    weighting: list[ScoreStep]
    softmax: bool
    least: float | None = None

    def pieces(self) -> list[Piece]:
        return [self.queries, *[step.piece for step in (*self.scores, *self.weighting) if step.piece is not None]]


@dataclass(eq=False)
class ChannelRun:
    """A run of a node's slots that is computed alike, with its times.

    ``ready[r]`` is the first step at whose start row r can be computed; ``uses[r]`` has bit 0 and bit 1 for the samples
    of the batch of two that it depends on. Either ``terms`` (columns ``columns`` of ``matrix``, plus ``bias``), or
    ``opcode`` with ``operands``, each a sum of pieces, or ``attention`` say how it is computed; inputs and constants
    have none of them.
    """

    slot: int
    length: int
    ready: np.ndarray
    uses: np.ndarray
    terms: list[Term] | None = None
    columns: np.ndarray | None = None
    matrix: Recipe | None = None
    bias: Recipe | None = None
    opcode: str | None = None
    operands: list[list[Piece]] = field(default_factory=list)
    x: float = 0.0
    y: float = 0.0
    attention: Attention | None = None

    def pieces(self) -> list[Piece]:
        """Returns what is read row by row; ``key_rows`` returns what is read besides."""
        if self.attention is not None:
            return self.attention.pieces()
        if self.terms is not None:
            return [term.piece for term in self.terms]
        return [piece for operand in self.operands for piece in operand]

    def key_rows(self) -> list[KeyRows]:
        """Returns the keys and the values, many rows of which each row reads."""
        return [] if self.attention is None else [self.attention.keys, self.attention.values]

    def latest(self) -> list[Piece]:
        """Returns ``pieces``, and of what many rows are read the last one of each: what decides when a row is ready."""
        found = self.pieces()
        for keys in self.key_rows():
            rows = keys.latest(self.attention.seen)
            found.append(Piece(keys.node, rows, np.full(len(rows), keys.slot, np.int32), 1, keys.length))
        return found


class Place(NamedTuple):
    """Where in the network a node comes from: the layer, the line of the source, the node of the exported graph."""

    name: str = ""
    where: str = ""
    source: str = ""

    def __str__(self) -> str:
        return f"{self.name}, {self.where}"


@dataclass(eq=False)
class Node:
    index: int
    kind: str  # "input", "context", "constant", "computed"; "replaced": another node is read in its place
    place: Place
    rows_shape: tuple[int, ...]
    channels: int
    base: int
    runs: list[ChannelRun] = field(repr=False)
    values: Recipe | None = None  # of a constant: [rows, channels]
    context: int = 0  # number of a context
    loop: int = 0
    """Number of the loop of nodes that read one another at earlier rows, and lie side by side; 0 for none."""
    one_hot: list[Term] | None = field(default=None, repr=False)
    """Index terms of a one-hot encoding, whose classes are the slots."""
    run_of_slot: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.set_runs(self.runs)

    def set_runs(self, runs: list[ChannelRun]) -> None:
        """Takes other runs of the same channels."""
        self.runs = runs
        self.run_of_slot = np.empty(self.channels, np.int32)
        for number, run in enumerate(runs):
            self.run_of_slot[run.slot : run.slot + run.length] = number

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def where(self) -> str:
        return self.place.where

    @property
    def source(self) -> str:
        return self.place.source

    @property
    def rows(self) -> int:
        return math.prod(self.rows_shape)

    @property
    def uses(self) -> np.ndarray:
        """``[rows]``: the samples that any run of the row depends on."""
        return np.bitwise_or.reduce([run.uses for run in self.runs])


def halves(uses: np.ndarray) -> bool:
    """Whether the rows of a node split into those of sample 0 and those of sample 1."""
    middle, odd = divmod(len(uses), 2)
    return not odd and not (uses[:middle] & 2).any() and not (uses[middle:] & 1).any()
