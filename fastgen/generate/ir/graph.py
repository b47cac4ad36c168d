"""The dependency graph: every computed element has an id, and data movement runs on the ids.

Views, permutations, padding, concatenation and their like are the ATen operators themselves, applied to the tensors of
ids; contractions and elementwise operations add nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fastgen.generate.errors import CompileError
from fastgen.generate.ir.channels import Table, beside, channel_dim, channel_runs, heads_in_batch
from fastgen.generate.ir.graph_text import node_lines
from fastgen.generate.ir.ids import Ids
from fastgen.generate.ir.opcodes import REDUCTIONS
from fastgen.generate.ir.records import BATCH, ChannelRun, Constant, Node, Piece, Recipe, Term, Value, derive

__all__ = ["ChannelRun", "Constant", "Graph", "Node", "Piece", "Recipe", "Term", "Value", "derive"]


class Graph(Ids):
    """The nodes, and the constructors that rules use."""

    def __init__(self) -> None:
        super().__init__()
        self.constants: dict[str, Tensor] = {}
        self.assumptions: list[tuple[str, Recipe, Callable[[Tensor], bool]]] = []
        """What must still hold of constants when the parameters change, and where."""
        self.padding_only = False
        """Whether an operator reads something that is a constant everywhere; in a longer event it might not be."""
        self._value_nodes: dict[float, Node] = {}
        self.remark = ""
        """What a refusal for want of causality should add."""
        self.grid: tuple[int, ...] = ()
        self.prefix = 0  # first elements that are always known
        """Sizes of the event's dimensions."""

    def __str__(self) -> str:
        """Returns the graph for people to read: one line a node, one line a run of its channels."""
        return "\n".join(node_lines(self.nodes))

    # ---- constants

    def still(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the times of what depends on no input."""
        return np.zeros(rows, np.int32), np.zeros(rows, np.uint8)

    def constant_node(self, rows_shape: Sequence[int], channels: int, values: Recipe) -> Node:
        ready, uses = self.still(math.prod(rows_shape))
        return self.add("constant", rows_shape, channels, [ChannelRun(0, channels, ready, uses)], values=values)

    def value_node(self, value: float) -> Node:
        if value not in self._value_nodes:
            recipe = Recipe((), lambda: torch.tensor([[value]], dtype=torch.float32))
            self._value_nodes[value] = self.constant_node((1,), 1, recipe)
        return self._value_nodes[value]

    def constant_ids(self, constant: Constant, beside: Value | None = None) -> Tensor:
        """Ids of a constant that takes part in data movement, next to ``beside``.

        A few different numbers are constants by value; more of them, a node whose channels lie as those of ``beside``.
        """
        tensor = constant.tensor.detach().clone()  # the module's own tensor may change in place
        varied = bool(constant.recipe.sources) or (tensor.numel() > 8 and len(tensor.unique()) > 4)
        if varied and beside is not None and beside.ids.dim() == tensor.dim() and bool((tensor != 0).any()):
            channel = channel_dim(self, beside.shape, [beside])
            table = self._constant_table(constant, tensor.shape, [] if channel is None else [channel])
            if channel is None:
                return table.reshape(tensor.shape)
            rest = [n for d, n in enumerate(tensor.shape) if d != channel]
            return table.reshape(*rest, tensor.shape[channel]).movedim(-1, channel)
        self.assume(constant.recipe, lambda t: torch.equal(t, tensor))
        return self.value_ids_of(tensor)

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
            apart = len(piece.node.runs) > 1 and piece.varies
            for number in piece.source_numbers():
                at, run = source, piece.node.runs[number]
                if apart:
                    here = piece.node.run_of_slot[piece.slots[chosen]] == number
                    at, chosen_here = source[here], np.flatnonzero(chosen)[here]
                else:
                    chosen_here = chosen
                ready[chosen_here] = np.maximum(ready[chosen_here], run.ready[at])
                uses[chosen_here] |= run.uses[at]
        return ready, uses

    # ---- computed nodes

    def contract(
        self,
        rows_shape: Sequence[int],
        inputs: Sequence[tuple[np.ndarray, int, int, np.ndarray, bool]],
        matrix: Recipe,
        bias: Recipe | None,
        one_hot: bool = False,
    ) -> Value:
        """``sum_k x[k] W[k, :] + bias``; returns ids ``[*rows_shape, columns]``.

        ``inputs``: (ids of the first channel ``[rows]``, stride, length, weight rows, is index). Terms whose weights
        are all zero do not exist: masks need no rule. ``one_hot``: the matrix is the identity, and a contraction of all
        columns may read the inputs in their place.
        """
        rows = math.prod(rows_shape)
        weights = matrix(self.constants)
        if not bool(torch.isfinite(weights).all()):
            raise CompileError(f"weights at {self.place}, hold NaN or infinite values")
        nonzero = weights != 0
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
        by_time = sorted(
            times, key=lambda n: (int(times[n][0][0].max(initial=0)), int(np.flatnonzero(group_of == n)[0]))
        )
        slot_of = np.empty(columns, np.int64)
        slot = 0
        for number in by_time:
            (ready, uses), chosen = times[number]
            members = np.flatnonzero(group_of == number)
            slot_of[members] = np.arange(slot, slot + len(members))
            runs.append(ChannelRun(slot, len(members), ready, uses, chosen, members, matrix, bias))
            slot += len(members)
        encoded = runs[0].terms if one_hot and len(runs) == 1 else None
        node = self.add("computed", rows_shape, columns, runs, one_hot=encoded)
        ids = self.ids(node)
        return Value(ids if len(runs) == 1 else ids[..., torch.from_numpy(slot_of)])

    def assume(self, recipe: Recipe, holds: Callable[[Tensor], bool]) -> None:
        if recipe.sources:
            self.assumptions.append((str(self.place), recipe, holds))

    def _assume_zeros(self, matrix: Recipe, weight_rows: list[np.ndarray], pattern: np.ndarray) -> None:
        if pattern.all() or not len(weight_rows):
            return
        self.assume(
            matrix,
            lambda w: (
                not any(
                    ((w[torch.from_numpy(r)] != 0).any(0).numpy() & ~p).any()
                    for r, p in zip(weight_rows, pattern, strict=True)
                )
            ),
        )

    def _terms(self, ids: np.ndarray, stride: int, length: int, weight_rows: np.ndarray, index: bool) -> list[Term]:
        pieces, constants = self.decode(ids, stride, length)
        self.padding_only |= not pieces
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

    def map(
        self,
        opcode: str,
        *operands: Value | Constant,
        x: float = 0.0,
        y: float = 0.0,
        channel: int | None = None,
        ordered: bool = False,
    ) -> Value:
        """Adds an operation of program.py, with broadcasting; reductions (group size ``x``) run over the channels.

        ``channel`` says which dimension holds the channels, where the ids should not decide; ``ordered``: the node's
        channels lie in their order, not in that of the first operand's.
        """
        shape = torch.broadcast_shapes(*[o.ids.shape if isinstance(o, Value) else o.tensor.shape for o in operands])
        if channel is None and heads_in_batch(self, shape, operands):
            apart = [_with_heads(operand, shape) for operand in operands]
            return Value(self.map(opcode, *apart, x=x, y=y, ordered=ordered).ids.flatten(0, 1))
        found = channel_dim(self, shape, operands) if channel is None else channel
        dims = [] if found is None else [*beside(self, shape, operands, found, self.grid), found]
        dims = sorted(dims) if channel is None else dims
        tables = [self._table(o, shape, dims) for o in operands]
        rows_shape = [n for d, n in enumerate(shape) if d not in dims]
        channels = math.prod(shape[d] for d in dims)
        back = None
        for operand, table in zip(operands, tables, strict=True):
            if isinstance(operand, Value) and channels > 1 and not ordered:
                if table.whole is not None:
                    break
                middle = table.ids[table.ids.shape[0] // 2]
                order = torch.argsort(middle, stable=True)
                if (
                    (middle > 0).all()
                    and not torch.equal(order, torch.arange(channels))
                    and len(middle.unique()) == channels
                ):
                    tables = [Table(t.ids[:, order]) for t in tables]
                    back = torch.argsort(order)
                break
        rows = math.prod(rows_shape)
        runs = []
        atomic = opcode in REDUCTIONS
        cuts = [(0, channels, (1,))] if atomic else channel_runs(self, tables)
        for start, length, strides in cuts:
            sums = []
            for table, stride in zip(tables, strides, strict=True):
                pieces, constants = self.decode(table.ids[:, start].contiguous().numpy(), stride, length)
                self.padding_only |= not pieces
                sums.append(pieces + [self.value_piece(value, where, length) for value, where in constants])
            ready, uses = self.times([p for pieces in sums for p in pieces], rows)
            runs.append(ChannelRun(start, length, ready, uses, opcode=opcode, operands=sums, x=x, y=y))
        node = self.add("computed", rows_shape, channels, runs)
        ids = self.ids(node)
        if back is not None:
            ids = ids[..., back]
        if not dims:
            return Value(ids[..., 0])
        ids = ids.unflatten(-1, [shape[d] for d in dims])
        return Value(ids.movedim(list(range(-len(dims), 0)), dims))

    def _table(self, operand: Value | Constant, shape: Sequence[int], dims: list[int]) -> Table:
        """``[rows, channels]`` ids of an operand, whose dimensions ``dims`` are the channels."""
        if isinstance(operand, Constant):
            return Table(self._constant_table(operand, shape, dims))
        return Table.of(self, _channels_last(operand.ids.expand(shape), dims))

    def _constant_table(self, operand: Constant, shape: Sequence[int], dims: list[int]) -> Tensor:
        def values(tensor: Tensor) -> Tensor:
            tensor = _channels_last(tensor.expand(shape), dims)
            return tensor.reshape(-1, tensor.shape[-1]).to(torch.float32)

        full = values(operand.tensor)
        if operand.recipe.sources:  # values may change; only what is broadcast stays equal
            sizes = [1] * (len(shape) - operand.tensor.dim()) + list(operand.tensor.shape)
            same_rows = all(n == 1 for d, n in enumerate(sizes) if d not in dims)
            same_channels = all(sizes[d] == 1 for d in dims)
        else:
            same_rows = bool((full == full[:1]).all())
            same_channels = bool((full == full[:, :1]).all())
        rows, channels = full.shape
        rows_kept, channels_kept = 1 if same_rows else rows, 1 if same_channels else channels
        recipe = derive(lambda tensor: values(tensor)[:rows_kept, :channels_kept], operand).recipe
        rows_shape = (1,) if same_rows else [n for d, n in enumerate(shape) if d not in dims]
        node = self.constant_node(rows_shape, channels_kept, recipe)
        return self.ids(node).reshape(rows_kept, channels_kept).expand(rows, channels)


def _with_heads(operand: Value | Constant, shape: Sequence[int]) -> Value | Constant:
    """Returns an operand, broadcast, whose first dimension is split in samples and heads."""
    if isinstance(operand, Value):
        return Value(operand.ids.expand(shape).unflatten(0, (BATCH, -1)), operand.low, operand.high)
    return derive(lambda t: t.expand(shape).unflatten(0, (BATCH, -1)), operand)


def _channels_last(tensor: Tensor, dims: list[int]) -> Tensor:
    """Returns a tensor with the dimensions of its channels as the last one."""
    if not dims:
        return tensor.unsqueeze(-1)
    moved = tensor.movedim(dims, list(range(-len(dims), 0)))
    return moved if len(dims) == 1 else moved.flatten(-len(dims))


def _through(piece: Piece, term: Term, weight_rows: np.ndarray) -> Term:
    inner = term.piece
    rows = np.where(piece.rows >= 0, inner.rows[piece.rows], -1).astype(np.int32)
    slots = np.where(piece.rows >= 0, inner.slots[piece.rows], 0).astype(np.int32)
    return Term(Piece(inner.node, rows, slots, 1, 1), weight_rows, index=True)
