"""Weights times values: the attention node that scores become."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.generate.errors import CompileError, UnsupportedOperator
from fastgen.generate.frontend.score_operands import ScoreOperands
from fastgen.generate.frontend.scores import Scores, lead_moved
from fastgen.generate.ir.attend import attend
from fastgen.generate.ir.channels import same_row
from fastgen.generate.ir.graph import Graph, Value
from fastgen.generate.ir.records import BATCH, Node


def attended(graph: Graph, weights: Scores, values: Tensor) -> Value:
    """Returns ``weights @ values`` for ids ``[*lead, S, width]``."""
    if any(weights.left_out):
        values, weights = F.pad(values, (0, 0, *weights.left_out)), replace(weights, left_out=(0, 0))
    _leave_to_context(graph, weights, values)
    values = values.expand(*weights.shape[:-2], *values.shape[-2:])
    lead, (count, width) = weights.shape[:-2], (weights.shape[-2], values.shape[-1])
    if weights.nan:
        raise CompileError(
            f"a query sees no key at {graph.place}, where the softmax is NaN: use scaled_dot_product_attention, "
            "which gives 0, or let the query see itself"
        )
    if weights.even is not None and bool((weights.even & weights.seen.any(-1, keepdim=True)).any()):
        raise CompileError(
            f"all keys of a query are masked with one finite number at {graph.place}, so that it weighs them evenly, "
            "later ones too: let it see a key, or multiply its weights by 0"
        )
    if not weights.softmaxed and not bool(weights.seen.all()) and weights.hidden != 0:
        raise CompileError(
            f"scores that are masked with {weights.hidden:g} weigh values at {graph.place}: where there is no softmax, "
            "mask with 0"
        )
    if not lead:
        raise UnsupportedOperator(graph, "attention without a dimension of the batch")
    layout = _Layout.of(graph, weights.queries, weights.keys, values)
    arranged, values = lead_moved(weights, layout.arranged), layout.arranged(values)
    ids = _of_heads(graph, arranged, values)  # [N, heads, blocks, T, width]
    return Value(layout.restored(ids).reshape(*lead, count, width))


def _leave_to_context(graph: Graph, weights: Scores, values: Tensor) -> None:
    """Raises CompileError where what only depends on contexts is better computed in PyTorch, once, at the start."""
    if _of_context(graph, weights.queries) and _of_context(graph, weights.keys):
        raise CompileError(f"attention of a context has no rule, at {graph.place}")
    made = [node for ids in (weights.keys, values) for node in _of_context(graph, ids) if node.kind == "computed"]
    if made:
        error = CompileError(f"the keys of attention to a context are computed at {made[0].place}")
        error.still = tuple({node.source for node in made})
        raise error


def _of_context(graph: Graph, ids: Tensor) -> list[Node]:
    """Returns the nodes of ids that depend on contexts only; none where some depend on more."""
    found = [graph.nodes[n] for n in np.unique(np.searchsorted(graph.bases, ids[ids > 0].numpy(), side="right") - 1)]
    moving = any(run.ready.any() for node in found for run in node.runs)
    return [] if moving or not any(node.uses.any() for node in found) else found


# ---- the leading dimensions


@dataclass(frozen=True)
class _Layout:
    """How leading dimensions are arranged as [N, heads, blocks of positions]."""

    split: tuple[int, ...]
    """The leading dimensions, one that holds samples and others split in two."""
    order: tuple[int, ...]
    sizes: tuple[int, int, int]

    @classmethod
    def of(cls, graph: Graph, queries: Tensor, keys: Tensor, values: Tensor) -> _Layout:
        lead = list(queries.shape[:-2])
        for d, size in enumerate(lead):
            if size % BATCH == 0 and any(_splits_samples(graph, ids, d) for ids in (queries, keys, values)):
                break
        else:
            raise UnsupportedOperator(graph, "attention whose samples lie in no dimension of their own")
        split = [*lead[:d], BATCH, lead[d] // BATCH, *lead[d + 1 :]]
        tensors = [ids.reshape(*split, *ids.shape[-2:]) for ids in (queries, keys, values)]
        others = [e for e in range(len(split)) if e != d]
        heads = [e for e in others if all(same_row(graph, ids, e) is not False for ids in tensors)]
        blocks = [e for e in others if e not in heads]
        sizes = math.prod(split[e] for e in heads), math.prod(split[e] for e in blocks)
        return cls(tuple(split), (d, *heads, *blocks), (BATCH, *sizes))

    def arranged(self, tensor: Tensor) -> Tensor:
        rest = tensor.shape[-2:]
        split = tensor.reshape(*self.split, *rest)
        count = len(self.split)
        return split.permute(*self.order, count, count + 1).reshape(*self.sizes, *rest)

    def restored(self, tensor: Tensor) -> Tensor:
        rest = tensor.shape[-2:]
        count = len(self.split)
        moved = tensor.reshape(*[self.split[e] for e in self.order], *rest)
        return moved.permute(*[self.order.index(e) for e in range(count)], count, count + 1)


def _splits_samples(graph: Graph, ids: Tensor, dim: int) -> bool:
    """Whether the halves of a dimension depend on one sample each."""
    found = []
    for half in ids.split(ids.shape[dim] // BATCH, dim):
        line = half.reshape(-1)
        line = line[torch.linspace(0, len(line) - 1, min(len(line), 64)).long()].numpy()
        bits = 0
        for i in line[line > 0].tolist():
            node = graph.nodes[int(np.searchsorted(graph.bases, i, side="right")) - 1]
            bits |= int(node.uses[(i - node.base) // (node.channels + 1)])
        found.append(bits)
    return found == [1, 2]


# ---- heads, blocks and masks


def _of_heads(graph: Graph, weights: Scores, values: Tensor) -> Tensor:
    """Returns ids ``[N, heads, blocks, T, width]``; heads of different masks are nodes of their own."""
    _, heads, blocks, count, size = weights.shape
    seen = weights.seen
    if seen.shape[0] > 1 and not torch.equal(seen[:1].expand_as(seen), seen):
        raise UnsupportedOperator(graph, "attention with a mask that differs between samples")
    seen = seen[0]
    if len(seen) == 1:
        return _of_one_mask(graph, weights, values, seen[0].expand(blocks, count, size))
    masks, kind = torch.unique(seen.reshape(heads, -1), dim=0, return_inverse=True)
    parts = []
    for number in range(len(masks)):
        chosen = torch.nonzero(kind == number).flatten()
        part = lead_moved(weights, lambda t, chosen=chosen: t[:, chosen] if t.shape[1] > 1 else t)
        parts.append(_of_one_mask(graph, part, values[:, chosen], seen[chosen[0]].expand(blocks, count, size)))
    back = torch.argsort(torch.cat([torch.nonzero(kind == n).flatten() for n in range(len(masks))]))
    return torch.cat(parts, 1)[:, back]


def _of_one_mask(graph: Graph, weights: Scores, values: Tensor, mask: Tensor) -> Tensor:
    """``mask``: ``[blocks, T, S]``, of all heads."""
    batch, heads, blocks, count, _ = weights.shape
    width = values.shape[-1]
    seen = torch.block_diag(*mask.to(torch.uint8)).bool().numpy() if blocks > 1 else mask[0].numpy()

    def flat(ids: Tensor) -> Tensor:
        """``[N, heads, blocks, positions, channels]`` as ``[N, blocks * positions, heads, channels]``."""
        return ids.permute(0, 2, 3, 1, 4).flatten(1, 2)

    keys, answers = flat(weights.keys), flat(values)
    if blocks > 1:
        keys, answers, seen = _each_once(graph, keys, answers, seen)
    queries, keys = _in_rows(flat(weights.queries), keys)
    repeated = math.gcd(_repeats(keys), _repeats(answers))
    operands = ScoreOperands(graph, (batch, heads, blocks, count), seen)
    ids = attend(
        graph,
        queries.flatten(2),
        keys[:, :, ::repeated].flatten(2),
        answers[:, :, ::repeated].flatten(2),
        heads=heads,
        groups=heads // repeated,
        seen=seen,
        scores=[operands.step(step) for step in weights.scores],
        weighting=[operands.step(step) for step in weights.weighting],
        softmax=weights.softmaxed,
        least=weights.least,
    )
    return ids.reshape(batch, blocks, count, heads, width).permute(0, 3, 1, 2, 4)


def _in_rows(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both with the channels of a head in the order in which they lie in their rows, where that is the same.

    What rotates pairs of channels interleaves two tensors; a product may sum them in any order.
    """
    orders = [ids[0, ids.shape[1] // 2].argsort(dim=-1, stable=True) for ids in (queries, keys)]
    order = orders[0][0]
    if all(torch.equal(o, order.expand_as(o)) for o in orders):
        return queries[..., order], keys[..., order]
    return queries, keys


def _repeats(ids: Tensor) -> int:
    """Returns how many neighbouring heads read the same keys: ids ``[N, S, heads, channels]``."""
    heads = ids.shape[2]
    for repeated in range(heads, 1, -1):
        if heads % repeated == 0:
            grouped = ids.unflatten(2, (-1, repeated))
            if torch.equal(grouped, grouped[:, :, :, :1].expand_as(grouped)):
                return repeated
    return 1


def _each_once(graph: Graph, keys: Tensor, values: Tensor, seen: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
    """Leaves out keys that no query sees, and keeps one of those that overlapping blocks repeat."""
    used = np.flatnonzero(seen.any(0))
    keys, values, seen = keys[:, used], values[:, used], seen[:, used]
    told = torch.cat([keys[0].flatten(1), values[0].flatten(1)], 1)
    unique, place = torch.unique(told, dim=0, return_inverse=True)
    if len(unique) == len(told):
        return keys, values, seen
    place = place.numpy()
    merged = np.zeros((len(seen), len(unique)), np.int32)
    np.add.at(merged.T, place, seen.T.astype(np.int32))
    if (merged > 1).any():
        raise UnsupportedOperator(graph, "attention that sees one key several times")
    first = np.unique(place, return_index=True)[1]
    return keys[:, first], values[:, first], merged.astype(bool)
