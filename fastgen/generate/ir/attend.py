"""Attention nodes: every row weighs rows of two other nodes, those that it sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

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
    asking, answers = whole_node(graph, queries), whole_node(graph, values)
    rows = np.arange(batch * count, dtype=np.int32)
    piece = Piece(asking, rows, np.zeros(len(rows), np.int32), 1, asking.channels)
    order = np.arange(batch * keys.shape[1], dtype=np.int32).reshape(batch, -1)
    attention = Attention(
        heads, groups, piece, KeyRows(whole_node(graph, keys), order), KeyRows(answers, order), seen, list(scores),
        list(weighting), softmax, least,
    )  # fmt: skip
    ready, uses = attention_times(graph, attention, len(rows))
    channels = heads * (answers.channels // groups)
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


def whole_node(graph: Graph, ids: Tensor) -> Node:
    """Returns the node of which ids ``[N, rows, channels]`` are all, in order; made of copies where there is none."""
    first = int(ids[0, 0, 0])
    if first > 0:
        node = graph.nodes[int(np.searchsorted(graph.bases, first, side="right")) - 1]
        channels = ids.shape[-1]
        if node.channels == channels and node.rows == ids[..., 0].numel() and first == node.base:
            rows = torch.arange(node.rows)[:, None] * (channels + 1) + node.base
            if torch.equal(ids.reshape(-1, channels), rows + torch.arange(channels)):
                return node
    copied = graph.map("mulc", Value(ids), x=1.0, channel=2, ordered=True)
    return graph.nodes[int(np.searchsorted(graph.bases, int(copied.ids[0, 0, 0]), side="right")) - 1]
