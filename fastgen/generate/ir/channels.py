"""Channels of a tensor of ids: which dimension they are, and the runs in which they advance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastgen.generate.ir.ids import Ids
from fastgen.generate.ir.records import BATCH, Constant, Node, Value

_PROBES = 16


@dataclass(frozen=True)
class Table:
    """Ids ``[rows, channels]``. ``whole`` is known where they are a view of one node's own ids: (node, first slot)."""

    ids: Tensor
    whole: tuple[Node, int] | None = None

    @classmethod
    def of(cls, graph: Ids, ids: Tensor) -> Table:
        """Makes a table from ids ``[..., channels]``."""
        channels = ids.shape[-1]
        node = graph.owner(ids)
        whole = None
        if node is not None and (channels == 1 or ids.stride(-1) == 1):
            first = ids.storage_offset() % node.channels
            strides = [s for s, n in zip(ids.stride()[:-1], ids.shape[:-1], strict=True) if n > 1]
            if all(s % node.channels == 0 for s in strides) and first + channels <= node.channels:
                whole = node, first
        return cls(ids.reshape(-1, channels), whole)


def channel_runs(graph: Ids, tables: Sequence[Table]) -> list[tuple[int, int, tuple[int, ...]]]:
    """Cuts the channels of id tables into runs (start, length, stride per table).

    Within a run every row's ids advance by the table's stride (constants stay the same), and no run crosses the
    boundary between runs of a source.
    """
    channels = tables[0].ids.shape[1]
    breaks = np.zeros(channels + 1, bool)
    breaks[[0, channels]] = True
    strides = []
    for table in tables:
        steps, cut, inner = _advance(graph, table)
        strides.append(steps)
        breaks[1:channels] |= cut
        breaks |= inner
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


def _advance(graph: Ids, table: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns strides between channels, whether the run is broken there, and the borders of the source's runs."""
    ids = table.ids
    rows, channels = ids.shape
    if table.whole is not None:
        node, first = table.whole
        inner = np.zeros(channels + 1, bool)
        inner[1:-1] = np.diff(node.run_of_slot[first : first + channels]) != 0
        return np.ones(channels - 1, np.int64), np.zeros(channels - 1, bool), inner
    probe = ids if rows <= _PROBES else ids[torch.linspace(0, rows - 1, _PROBES).long()]
    steps, cut = _strides(graph, probe)
    if not _verify(ids, steps, cut):
        steps, cut = _strides(graph, ids)
    return steps, cut, _source_breaks(graph, ids)


def _strides(graph: Ids, table: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Returns strides between channels (0 where all rows are constants), and whether the run is broken there."""
    ids = table.numpy()
    difference = ids[:, 1:] - ids[:, :-1]
    left, right = ids[:, :-1] > 0, ids[:, 1:] > 0
    cut = (left != right).any(0) | (~left & (difference != 0)).any(0)
    big = np.iinfo(np.int64).max
    low = np.where(left, difference, big).min(0, initial=big)
    high = np.where(left, difference, -big).max(0, initial=-big)
    some = left.any(0)
    cut |= some & ((low != high) | (low < 0) | (low > graph.widest))
    return np.where(some & ~cut, low, 0), cut


def _verify(table: Tensor, steps: np.ndarray, cut: np.ndarray) -> bool:
    starts = np.concatenate([[0], np.flatnonzero(cut) + 1])
    start_of = np.repeat(starts, np.diff(np.append(starts, table.shape[1])))
    offset = np.concatenate([[0], np.cumsum(np.where(cut, 0, steps))])
    offset = torch.from_numpy(offset - offset[start_of])
    first = table[:, torch.from_numpy(start_of)] if len(starts) > 1 else table[:, :1]
    return bool(torch.where(first > 0, first + offset, first).eq(table).all())


def _source_breaks(graph: Ids, table: Tensor) -> np.ndarray:
    """Finds where a channel enters another run of its source, or another row of it."""
    breaks = np.zeros(table.shape[1] + 1, bool)
    if table.shape[1] == 1:
        return breaks
    few = table[:, :: max(1, table.shape[1] // 4)]
    filled = table[(few > 0).any(1)]
    if not len(filled):
        filled = table[(table > 0).any(1)]
    if not len(filled):
        return breaks
    probe = filled[torch.linspace(0, len(filled) - 1, min(len(filled), _PROBES)).long()].numpy()
    for ids in probe:
        number = np.searchsorted(graph.bases, ids, side="right") - 1
        key = np.full(len(ids), -1, np.int64)
        for n in np.unique(number[ids > 0]).tolist():
            node, chosen = graph.nodes[n], (ids > 0) & (number == n)
            row, slot = np.divmod(ids[chosen] - node.base, node.channels + 1)
            key[chosen] = (n << 48) + row * len(node.runs) + node.run_of_slot[slot]
        breaks[1:-1] |= key[1:] != key[:-1]
    return breaks


def channel_dim(graph: Ids, shape: Sequence[int], operands: Sequence[Value | Constant]) -> int | None:
    """Returns the dimension along which the operands' ids advance in one row of their node; None for one channel."""
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
                line = np.sort(line[line > 0])  # neighbours may lie in different nodes, after a channel shuffle
                if len(line) < 2:
                    continue
                if (line == line[0]).all():
                    expanded = d if expanded is None else expanded
                    continue
                number = np.searchsorted(graph.bases, line, side="right") - 1
                pair = (number[1:] == number[:-1]) & (line[1:] != line[:-1])
                channels = np.array([graph.nodes[n].channels + 1 for n in number[1:]])
                bases = graph.bases[number[1:]]
                same_row = (line[1:] - bases) // channels == (line[:-1] - bases) // channels
                if (pair & same_row).sum() * 2 > pair.sum():
                    return d
    return expanded if any(isinstance(o, Constant) for o in operands) else None


def same_row(graph: Ids, ids: Tensor, dim: int) -> bool | None:
    """Whether the ids along a dimension lie side by side in time; None where that cannot be said.

    They lie in one row of a node, or in the same rows of nodes of as many rows that are ready at the same step.
    """
    said = None
    for at in (0.5, 0.999, 0.25):
        index = [int(at * (n - 1) + 0.5) for n in ids.shape]
        line = ids[tuple(slice(None) if d == dim % ids.dim() else i for d, i in enumerate(index))]
        line = line[line > 0].unique().numpy()
        if len(line) > 1:
            places = set()
            for number, node_ids in _by_node(graph, line):
                node = graph.nodes[number]
                rows, slots = np.divmod(node_ids - node.base, node.channels + 1)
                ready = np.stack([run.ready for run in node.runs])[node.run_of_slot[slots], rows]
                places |= {
                    (node.rows_shape, row, when) for row, when in zip(rows.tolist(), ready.tolist(), strict=True)
                }
            if len(places) > 1:
                return False
            said = True
    return said


def _by_node(graph: Ids, ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    number = np.searchsorted(graph.bases, ids, side="right") - 1
    for n in np.unique(number).tolist():
        yield n, ids[number == n]


def beside(graph: Ids, shape: Sequence[int], operands: Sequence[Value | Constant], channel: int) -> list[int]:
    """Returns the other dimensions along which the operands stay in one row of their node, heads for instance."""
    tensors = [o.ids.expand(shape) for o in operands if isinstance(o, Value)]
    found = []
    for dim in (d for d in range(1, len(shape)) if d != channel and shape[d] > 1):
        said = []
        for ids in tensors:
            said.append(same_row(graph, ids, dim))
            if said[-1] is False:
                break
        if True in said and False not in said:
            found.append(dim)
    return found


def heads_in_batch(graph: Ids, shape: Sequence[int], operands: Sequence[Value | Constant]) -> bool:
    """Whether the first dimension holds samples times heads: its halves are in the rows of one sample each."""
    if len(shape) < 3 or shape[0] <= BATCH or shape[0] % BATCH:
        return False
    said = []
    for operand in operands:
        if isinstance(operand, Value):
            ids = operand.ids.expand(shape).unflatten(0, (BATCH, -1))
            said += [same_row(graph, ids, 1), None if same_row(graph, ids, 0) is not True else False]
    return True in said and False not in said
