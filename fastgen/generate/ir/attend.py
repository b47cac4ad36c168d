"""Attention nodes: every row weighs rows of two other nodes, those that it sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastgen.generate.errors import CompileError
from fastgen.generate.ir.graph import Graph, Value
from fastgen.generate.ir.records import Attention, ChannelRun, KeyRows, Node, Piece, ScoreStep


def attend(
    graph: Graph,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    heads: int,
    groups: int,
    seen: np.ndarray,
    scores: Sequence[ScoreStep],
    weighting: Sequence[ScoreStep],
    softmax: bool,
    least: float | None,
) -> Tensor:
    """Adds an attention node and returns its ids ``[N, T, heads * width]``.

    Args:
        graph: the graph.
        queries: ids ``[N, T, heads * depth]``.
        keys, values: ids ``[N, S, groups * depth]`` and ``[N, S, groups * width]``.
        heads, groups: head h reads group ``h * groups // heads``.
        seen: bool ``[T, S]``: whether a query sees a key.
        scores, weighting: lane programs over the keys.
        softmax: whether weights are the softmax of the scores.
        least: what the greatest score of a query must reach.
    """
    batch, count, _ = queries.shape
    asking, _ = whole_rows(graph, queries)
    rows = np.arange(batch * count, dtype=np.int32)
    piece = Piece(asking, rows, np.zeros(len(rows), np.int32), 1, asking.channels)
    order = np.arange(batch * keys.shape[1], dtype=np.int32).reshape(batch, -1)
    asked, answers = (_key_rows(graph, ids, order) for ids in (keys, values))
    attention = Attention(heads, groups, piece, asked, answers, seen, list(scores), list(weighting), softmax, least)
    ready, uses = attention_times(graph, attention, len(rows))
    channels = heads * (answers.length // groups)
    node = graph.add(
        "computed", asking.rows_shape, channels, [ChannelRun(0, channels, ready, uses, attention=attention)]
    )
    return graph.ids(node).reshape(batch, count, channels)


def attention_times(graph: Graph, attention: Attention, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns when the rows of an attention node are ready, and the samples that they depend on."""
    ready, uses = graph.times(attention.pieces(), rows)
    seen = attention.seen
    for keys in (attention.keys, attention.values):
        if keys.node.kind == "constant":
            continue
        when = np.max([run.ready for run in keys.node.runs], 0)
        for part, own in zip(np.split(np.arange(rows), len(keys.rows)), keys.rows, strict=True):
            ready[part] = np.maximum(ready[part], np.where(seen, when[own], 0).max(1, initial=0))
            uses[part] |= np.bitwise_or.reduce(np.where(seen, keys.node.uses[own], np.uint8(0)), axis=1)
    return ready, uses


def _key_rows(graph: Graph, ids: Tensor, order: np.ndarray) -> KeyRows:
    node, slot = whole_rows(graph, ids)
    return KeyRows(node, order, slot, ids.shape[-1])


def whole_rows(graph: Graph, ids: Tensor) -> tuple[Node, int]:
    """Returns the node whose rows, in order, ids ``[N, rows, channels]`` are, and the slot of their first channel.

    They are all channels of a computed node, which is made of copies where there is none; or some of a context.

    Raises:
        CompileError: a context has its channels in another dimension.
    """
    first = int(ids[0, 0, 0])
    if first > 0:
        node = graph.nodes[int(np.searchsorted(graph.bases, first, side="right")) - 1]
        channels, slot = ids.shape[-1], first - node.base
        some = node.kind == "context" or channels == node.channels
        if some and node.rows == ids[..., 0].numel() and 0 <= slot <= node.channels - channels:
            rows = torch.arange(node.rows)[:, None] * (node.channels + 1) + first
            if torch.equal(ids.reshape(-1, channels), rows + torch.arange(channels)):
                return node, slot
        if node.kind == "context":
            error = CompileError(f"keys of attention at {graph.place} lie in no order in {node.place}")
            error.context = node.context
            raise error
    copied = graph.map("mulc", Value(ids), x=1.0, channel=2, ordered=True)
    return graph.nodes[int(np.searchsorted(graph.bases, int(copied.ids[0, 0, 0]), side="right")) - 1], 0
