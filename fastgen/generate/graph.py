"""The dependency graph: every computed element has an id, and data movement runs on the ids.

A *node* is a tensor that a machine will compute (or is given): rows of channels. Its element (row, slot) has the id
``base + row * (channels + 1) + slot``, so a run of a row's channels is a run of ids, and runs never cross rows. Id 0 is the
constant zero, id -(k + 1) the constant ``values[k]``. Views, permutations, padding, concatenation and their like are the ATen
operators themselves, applied to the tensors of ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

REDUCTIONS = ("sum", "amax", "amin")


@dataclass(frozen=True)
class Recipe:
    """Float32 values made from the graph's folded constants: ``function(*[constants[s] for s in sources])``."""

    sources: tuple[str, ...]
    function: Callable[..., Tensor]

    def __call__(self, constants: dict[str, Tensor]) -> Tensor:
        return self.function(*[constants[s] for s in self.sources]).to(torch.float32)


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
    """A tensor that depends on the input: the ids of its elements."""

    ids: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.ids.shape


@dataclass(eq=False)
class Piece:
    """For every row of the reader: ``length`` slots of ``node`` from (``rows[r]``, ``slots[r]``) on; nothing where rows is -1."""

    node: Node
    rows: np.ndarray
    slots: np.ndarray
    stride: int
    length: int

    def source_runs(self) -> list[Channels]:
        """The runs of ``node`` that the piece touches (one, unless it is the whole operand of a reduction)."""
        slots = np.unique(self.slots[self.rows >= 0])
        reach = slots[:, None] + self.stride * np.arange(self.length) if len(slots) == 1 else slots
        return [self.node.runs[n] for n in np.unique(self.node.run_of_slot[reach])]

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
class Channels:
    """A run of a node's slots that is computed alike, with its times.

    ``ready[r]`` is the first step at whose start row r can be computed; ``uses[r]`` has bit 0 and bit 1 for the samples of the
    batch of two that it depends on. Either ``terms`` (columns ``columns`` of ``matrix``, plus ``bias``) or ``opcode`` with
    ``operands``, each a sum of pieces, say how it is computed; inputs and constants have neither.
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

    def pieces(self) -> list[Piece]:
        if self.terms is not None:
            return [term.piece for term in self.terms]
        return [piece for operand in self.operands for piece in operand]


@dataclass(eq=False)
class Node:
    index: int
    kind: str  # "input", "context", "constant", "computed"
    name: str
    where: str
    rows_shape: tuple[int, ...]
    channels: int
    base: int
    runs: list[Channels]
    values: Recipe | None = None  # of a constant: [rows, channels]
    context: int = 0  # number of a context
    one_hot: list[Term] | None = None  # index terms of a one-hot encoding, whose classes are the slots
    run_of_slot: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.run_of_slot = np.empty(self.channels, np.int32)
        for number, run in enumerate(self.runs):
            self.run_of_slot[run.slot : run.slot + run.length] = number

    @property
    def rows(self) -> int:
        return math.prod(self.rows_shape)


class Graph:
    """The nodes, and the constructors that rules use."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, Tensor] = {}
        self.values: list[float] = []
        self.assumptions: list[tuple[str, Recipe, Callable[[Tensor], bool]]] = []
        """What must still hold of constants when the parameters change, and where."""
        self._bases = np.empty(0, np.int64)
        self._next = 1
        self._value_ids: dict[float, int] = {}
        self._value_nodes: dict[float, Node] = {}
        self.name, self.where = "", ""

    # ---- nodes and ids

    def add(self, kind: str, rows_shape: Sequence[int], channels: int, runs: list[Channels], **options) -> Node:
        node = Node(len(self.nodes), kind, self.name, self.where, tuple(rows_shape), channels, self._next, runs, **options)
        self.nodes.append(node)
        self._bases = np.append(self._bases, node.base)
        self._next += node.rows * (channels + 1)
        return node

    def ids(self, node: Node) -> Tensor:
        """``[*rows_shape, channels]``"""
        rows = torch.arange(node.rows, dtype=torch.int64) * (node.channels + 1) + node.base
        return (rows[:, None] + torch.arange(node.channels)).reshape(*node.rows_shape, node.channels)

    def still(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """The times of what depends on no input."""
        return np.zeros(rows, np.int32), np.zeros(rows, np.uint8)

    def constant_node(self, rows_shape: Sequence[int], channels: int, values: Recipe) -> Node:
        ready, uses = self.still(math.prod(rows_shape))
        return self.add("constant", rows_shape, channels, [Channels(0, channels, ready, uses)], values=values)

    def value_node(self, value: float) -> Node:
        if value not in self._value_nodes:
            recipe = Recipe((), lambda: torch.tensor([[value]]))
            self._value_nodes[value] = self.constant_node((1,), 1, recipe)
        return self._value_nodes[value]

    def constant_ids(self, constant: Constant, beside: Value | None = None) -> Tensor:
        """Ids of a constant that takes part in data movement, next to ``beside``.

        A few different numbers are constants by value; more of them, a node whose channels lie as those of ``beside``.
        """
        tensor = constant.tensor.detach()
        varied = bool(constant.recipe.sources) or tensor.numel() > 8 and len(tensor.unique()) > 4
        if varied and beside is not None and beside.ids.dim() == tensor.dim() and bool((tensor != 0).any()):
            channel = _channel_dim(self, beside.shape, [beside])
            table = self._constant_table(constant, tensor.shape, channel)
            if channel is None:
                return table.reshape(tensor.shape)
            rest = [n for d, n in enumerate(tensor.shape) if d != channel]
            return table.reshape(*rest, tensor.shape[channel]).movedim(-1, channel)
        self.assume(constant.recipe, lambda t: torch.equal(t, tensor))
        return self._value_ids_of(tensor)

    def _value_ids_of(self, tensor: Tensor) -> Tensor:
        flat = tensor.to(torch.float64).reshape(-1)
        unique, inverse = torch.unique(flat, return_inverse=True)
        table = torch.tensor([self._value_id(v) for v in unique.tolist()], dtype=torch.int64)
        return table[inverse].reshape(tensor.shape)

    def _value_id(self, value: float) -> int:
        if value == 0:
            return 0
        if value not in self._value_ids:
            self.values.append(value)
            self._value_ids[value] = -len(self.values)
        return self._value_ids[value]

    def decode(self, ids: np.ndarray, stride: int, length: int) -> tuple[list[Piece], list[tuple[float, np.ndarray]]]:
        """The pieces behind one id a row, and the constants (value, where) among them, zero left out."""
        pieces, constants = [], []
        present = ids > 0
        if present.any():
            found = ids[present]
            node_of = np.searchsorted(self._bases, found, side="right") - 1
            first = node_of[0]
            numbers = [first] if (node_of == first).all() else np.unique(node_of).tolist()
            for number in numbers:
                node = self.nodes[number]
                chosen = present.copy()
                chosen[present] = node_of == number
                offset = ids[chosen] - node.base
                rows = np.full(len(ids), -1, np.int32)
                slots = np.zeros(len(ids), np.int32)
                rows[chosen], slots[chosen] = np.divmod(offset, node.channels + 1)
                pieces.append(Piece(node, rows, slots, stride, length))
        if (ids < 0).any():
            for number in np.unique(ids[ids < 0]).tolist():
                constants.append((self.values[-number - 1], ids == number))
        return pieces, constants

    def value_piece(self, value: float, where: np.ndarray, length: int = 1) -> Piece:
        rows = np.where(where, 0, -1).astype(np.int32)
        return Piece(self.value_node(value), rows, np.zeros(len(rows), np.int32), 0, length)

    def times(self, pieces: Sequence[Piece], rows: int) -> tuple[np.ndarray, np.ndarray]:
        ready, uses = self.still(rows)
        for piece in pieces:
            chosen = piece.rows >= 0
            source = piece.rows[chosen]
            if piece.node.kind == "constant":
                continue
            for run in piece.source_runs():
                at = source
                if len(piece.node.runs) > 1 and piece.varies:
                    here = piece.node.run_of_slot[piece.slots[chosen]] == piece.node.runs.index(run)
                    at, chosen_here = source[here], np.flatnonzero(chosen)[here]
                else:
                    chosen_here = chosen
                ready[chosen_here] = np.maximum(ready[chosen_here], run.ready[at])
                uses[chosen_here] |= run.uses[at]
        return ready, uses

    # ---- runs of channels

    def channel_runs(self, tables: Sequence[Tensor]) -> list[tuple[int, int, tuple[int, ...]]]:
        """Cut the channels of ``[rows, channels]`` id tables into runs (start, length, stride per table).

        Within a run every row's ids advance by the table's stride (constants stay the same), and no run crosses the
        boundary between runs of a source.
        """
        channels = tables[0].shape[1]
        breaks = np.zeros(channels + 1, bool)
        breaks[[0, channels]] = True
        strides = []
        for table in tables:
            rows = table.shape[0]
            probe = table if rows <= 16 else table[torch.linspace(0, rows - 1, 16).long()]
            stride = self._strides(probe)
            if stride is None or not self._verify(table, stride[0], stride[1]):
                stride = self._strides(table)
            steps, cut = stride
            strides.append(steps)
            breaks[1:channels] |= cut
            breaks |= self._source_breaks(table)
        starts = np.flatnonzero(breaks)
        runs = []
        for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            begin = start
            while begin < stop:  # a change of stride inside starts a new run
                end = begin + 1
                while end < stop and all(s[end - 1] == s[begin] for s in strides):
                    end += 1
                runs.append((begin, end - begin, tuple(int(s[begin]) if end - begin > 1 else 1 for s in strides)))
                begin = end
        return runs

    def _strides(self, table: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Stride from each channel to the next (0 where all rows are constants) and whether the run is broken there."""
        ids = table.numpy()
        difference = ids[:, 1:] - ids[:, :-1]
        left, right = ids[:, :-1] > 0, ids[:, 1:] > 0
        cut = (left != right).any(0) | (~left & (difference != 0)).any(0)
        big = np.iinfo(np.int64).max
        low = np.where(left, difference, big).min(0, initial=big)
        high = np.where(left, difference, -big).max(0, initial=-big)
        some = left.any(0)
        cut |= some & ((low != high) | (low < 0) | (low > self._widest()))
        steps = np.where(some & ~cut, low, 0)
        return steps, cut

    def _widest(self) -> int:
        return max((node.channels for node in self.nodes), default=1)

    def _verify(self, table: Tensor, steps: np.ndarray, cut: np.ndarray) -> bool:
        starts = np.concatenate([[0], np.flatnonzero(cut) + 1])
        start_of = np.repeat(starts, np.diff(np.append(starts, table.shape[1])))
        offset = np.concatenate([[0], np.cumsum(np.where(cut, 0, steps))])
        offset = torch.from_numpy(offset - offset[start_of])
        first = table[:, torch.from_numpy(start_of)] if len(starts) > 1 else table[:, :1]
        return bool(torch.where(first > 0, first + offset, first).eq(table).all())

    def _source_breaks(self, table: Tensor) -> np.ndarray:
        """Where a channel of any row enters another run of its source, or another row of it."""
        breaks = np.zeros(table.shape[1] + 1, bool)
        if table.shape[1] == 1:
            return breaks
        rows = table.shape[0]
        probe = table[torch.linspace(0, rows - 1, min(rows, 5)).long()].numpy()
        for ids in probe:
            number = np.searchsorted(self._bases, ids, side="right") - 1
            key = np.full(len(ids), -1, np.int64)
            for n in np.unique(number[ids > 0]).tolist():
                node, chosen = self.nodes[n], (ids > 0) & (number == n)
                row, slot = np.divmod(ids[chosen] - node.base, node.channels + 1)
                key[chosen] = (n << 48) + row * len(node.runs) + node.run_of_slot[slot]
            breaks[1:-1] |= key[1:] != key[:-1]
        return breaks

    # ---- computed nodes

    def contract(
        self,
        rows_shape: Sequence[int],
        inputs: Sequence[tuple[np.ndarray, int, int, np.ndarray, bool]],
        matrix: Recipe,
        bias: Recipe | None,
    ) -> Value:
        """``sum_k x[k] W[k, :] + bias``; returns ids ``[*rows_shape, columns]``.

        ``inputs``: (ids of the first channel ``[rows]``, stride, length, weight rows, is index). Terms whose weights are all
        zero do not exist: masks need no rule.
        """
        rows = math.prod(rows_shape)
        nonzero = matrix(self.constants) != 0
        terms = []
        for ids, stride, length, weight_rows, index in inputs:
            terms += self._terms(ids, stride, length, weight_rows, index)
        columns = nonzero.shape[1]
        if terms:
            pattern = np.stack([nonzero[torch.from_numpy(t.weight_rows)].any(0).numpy() for t in terms])
        else:
            pattern = np.zeros((0, columns), bool)
        self._assume_zeros(matrix, [t.weight_rows for t in terms], pattern)
        groups, group_of = np.unique(pattern, axis=1, return_inverse=True)
        group_of = group_of.reshape(-1)
        runs, times = [], {}
        for number in range(groups.shape[1]):
            chosen = [t for t, used in zip(terms, groups[:, number], strict=True) if used]
            times[number] = self.times([t.piece for t in chosen], rows), chosen
        by_time = sorted(times, key=lambda n: (int(times[n][0][0].max(initial=0)), int(np.flatnonzero(group_of == n)[0])))
        slot_of = np.empty(columns, np.int64)
        slot = 0
        for number in by_time:
            (ready, uses), chosen = times[number]
            members = np.flatnonzero(group_of == number)
            slot_of[members] = np.arange(slot, slot + len(members))
            runs.append(Channels(slot, len(members), ready, uses, chosen, members, matrix, bias))
            slot += len(members)
        node = self.add("computed", rows_shape, columns, runs)
        ids = self.ids(node)
        return Value(ids if len(runs) == 1 else ids[..., torch.from_numpy(slot_of)])

    def assume(self, recipe: Recipe, holds: Callable[[Tensor], bool]) -> None:
        if recipe.sources:
            self.assumptions.append((f"{self.name}, {self.where}", recipe, holds))

    def _assume_zeros(self, matrix: Recipe, weight_rows: list[np.ndarray], pattern: np.ndarray) -> None:
        if pattern.all() or not len(weight_rows):
            return
        self.assume(
            matrix,
            lambda w: not any(
                ((w[torch.from_numpy(r)] != 0).any(0).numpy() & ~p).any() for r, p in zip(weight_rows, pattern, strict=True)
            ),
        )

    def _terms(self, ids: np.ndarray, stride: int, length: int, weight_rows: np.ndarray, index: bool) -> list[Term]:
        pieces, constants = self.decode(ids, stride, length)
        if index:
            terms = [Term(p, weight_rows, index=True) for p in pieces]
            zero = ids == 0
            for value, where in [*constants, *([(0.0, zero)] if zero.any() else [])]:
                terms.append(Term(self.value_piece(1.0, where), weight_rows[[int(value)]]))
            return terms
        terms = []
        for piece in pieces:
            node = piece.node
            if node.one_hot and piece.stride == 1 and piece.length == node.channels and not piece.slots.any():
                terms += [_through(piece, term, weight_rows) for term in node.one_hot]
            else:
                terms.append(Term(piece, weight_rows))
        for value, where in constants:
            terms.append(Term(self.value_piece(value, where, length), weight_rows))
        return terms

    def map(self, opcode: str, *operands: Value | Constant, x: float = 0.0, y: float = 0.0, channel: int | None = None) -> Value:
        """An operation of program.py, with broadcasting; reductions (group size ``x``) run over the channels.

        ``channel`` says which dimension holds the channels, where the ids should not decide.
        """
        shape = torch.broadcast_shapes(*[o.ids.shape if isinstance(o, Value) else o.tensor.shape for o in operands])
        channel = _channel_dim(self, shape, operands) if channel is None else channel
        tables = [self._table(o, shape, channel) for o in operands]
        rows_shape = list(shape)
        if channel is not None:
            channels = rows_shape.pop(channel)
        else:
            channels = 1
        back = None
        for operand, table in zip(operands, tables, strict=True):
            if isinstance(operand, Value) and channels > 1:
                middle = table[table.shape[0] // 2]
                order = torch.argsort(middle, stable=True)
                if (middle > 0).all() and not torch.equal(order, torch.arange(channels)) and len(middle.unique()) == channels:
                    tables = [t[:, order] for t in tables]
                    back = torch.argsort(order)
                break
        rows = math.prod(rows_shape)
        runs = []
        atomic = opcode in REDUCTIONS
        cuts = [(0, channels, (1,))] if atomic else self.channel_runs(tables)
        for start, length, strides in cuts:
            sums = []
            for table, stride in zip(tables, strides, strict=True):
                pieces, constants = self.decode(table[:, start].contiguous().numpy(), stride, length)
                sums.append(pieces + [self.value_piece(value, where, length) for value, where in constants])
            ready, uses = self.times([p for pieces in sums for p in pieces], rows)
            runs.append(Channels(start, length, ready, uses, opcode=opcode, operands=sums, x=x, y=y))
        node = self.add("computed", rows_shape, channels, runs)
        ids = self.ids(node)
        if back is not None:
            ids = ids[..., back]
        return Value(ids.movedim(-1, channel) if channel is not None else ids[..., 0])

    def _table(self, operand: Value | Constant, shape: Sequence[int], channel: int | None) -> Tensor:
        """``[rows, channels]`` ids of an operand."""
        if isinstance(operand, Constant):
            return self._constant_table(operand, shape, channel)
        ids = operand.ids.expand(shape)
        ids = ids.movedim(channel, -1) if channel is not None else ids.unsqueeze(-1)
        return ids.reshape(-1, ids.shape[-1])

    def _constant_table(self, operand: Constant, shape: Sequence[int], channel: int | None) -> Tensor:
        def values(tensor: Tensor) -> Tensor:
            tensor = tensor.expand(shape)
            tensor = tensor.movedim(channel, -1) if channel is not None else tensor.unsqueeze(-1)
            return tensor.reshape(-1, tensor.shape[-1]).to(torch.float32)

        full = values(operand.tensor)
        same_rows = bool((full == full[:1]).all())
        same_channels = bool((full == full[:, :1]).all())
        rows, channels = full.shape
        rows_kept, channels_kept = 1 if same_rows else rows, 1 if same_channels else channels
        recipe = derive(lambda tensor: values(tensor)[:rows_kept, :channels_kept], operand).recipe
        rows_shape = (1,) if same_rows else [n for d, n in enumerate(shape) if d != channel]
        node = self.constant_node(rows_shape, channels_kept, recipe)
        return self.ids(node).reshape(rows_kept, channels_kept).expand(rows, channels)


def _through(piece: Piece, term: Term, weight_rows: np.ndarray) -> Term:
    inner = term.piece
    rows = np.where(piece.rows >= 0, inner.rows[piece.rows], -1).astype(np.int32)
    slots = np.where(piece.rows >= 0, inner.slots[piece.rows], 0).astype(np.int32)
    return Term(Piece(inner.node, rows, slots, 1, 1), weight_rows, index=True)


def _channel_dim(graph: Graph, shape: Sequence[int], operands: Sequence[Value | Constant]) -> int | None:
    """The dimension along which the operands' ids stay in one row of their node and advance."""
    expanded = None
    for operand in operands:
        if not isinstance(operand, Value):
            continue
        ids = operand.ids.expand(shape)
        for at in (0.5, 0.75, 0.25, 0.999, 0.0):
            index = [int(at * (n - 1) + 0.5) for n in shape]
            for d in reversed(range(1, len(shape))):
                if shape[d] == 1:
                    continue
                line = ids[tuple(slice(None) if e == d else i for e, i in enumerate(index))].numpy()
                line = line[line > 0]
                if len(line) < 2:
                    continue
                number = np.searchsorted(graph._bases, line, side="right") - 1
                if (line == line[0]).all():
                    expanded = d if expanded is None else expanded
                    continue
                pair = number[1:] == number[:-1]
                channels = np.array([graph.nodes[n].channels + 1 for n in number[1:]])
                bases = graph._bases[number[1:]]
                same_row = (line[1:] - bases) // channels == (line[:-1] - bases) // channels
                if (pair & same_row).sum() * 2 > pair.sum():
                    return d
    for operand in operands:
        if isinstance(operand, Constant) and expanded is not None:
            return expanded
    return None
