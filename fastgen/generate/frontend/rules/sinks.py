"""Sinks of attention: numbers put beside the scores before the softmax, whose weights are left out after it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.generate.errors import UnsupportedOperator
from fastgen.generate.frontend.rules.attention import moved, score_rule
from fastgen.generate.frontend.scores import Scores, Step, result_of
from fastgen.generate.ir.graph import Constant, Graph, derive

aten = torch.ops.aten
_NEUTRAL = {"add": 0.0, "sub": 0.0, "mul": 1.0, "div": 1.0}


@score_rule(aten.cat.default)
def cat(graph: Graph, tensors, dim: int = 0) -> Scores:
    """Scores and constants in their order along the keys: a sink is a key that is 0, with the constant as its bias."""
    (place,) = [n for n, tensor in enumerate(tensors) if isinstance(tensor, Scores)] or [None]
    x = tensors[place]
    others = [tensor for n, tensor in enumerate(tensors) if n != place]
    if dim % len(x.shape) != len(x.shape) - 1 or not all(isinstance(other, Constant) for other in others):
        raise UnsupportedOperator(
            graph, "scores of attention that are joined with others than constants for every query"
        )
    for n, other in enumerate(others):
        x = _with_sinks(graph, x, other, first=n < place)
    return x


@score_rule(aten.pad.default, aten.constant_pad_nd.default)
def pad(graph: Graph, x: Scores, sizes, mode="constant", value=0.0) -> Scores:
    value = mode if not isinstance(mode, str) else value
    if len(sizes) != 2 or min(sizes) < 0 or (isinstance(mode, str) and mode != "constant"):
        raise UnsupportedOperator(graph, "scores of attention that are padded along more than the keys")
    for size, first in ((sizes[0], True), (sizes[1], False)):
        if size:
            x = _with_sinks(graph, x, Constant.literal(torch.full((1, size), float(value or 0.0))), first)
    return x


@score_rule(aten.slice.Tensor)
def slice_(graph: Graph, x: Scores, dim: int = 0, start=None, end=None, step: int = 1, *, operator) -> Scores:
    if dim % len(x.shape) != len(x.shape) - 1 or x.sinks == (0, 0):
        return moved(graph, x, dim, start, end, step, operator=operator)
    size = x.shape[-1]
    kept = range(size)[slice(start, end, step)]
    first, last = x.sinks
    if not x.softmaxed or kept != range(first, size - last):
        raise UnsupportedOperator(graph, "weights of attention of which others than the sinks are left out")
    return replace(x, sinks=(0, 0), left_out=x.sinks)


def _with_sinks(graph: Graph, x: Scores, sink: Constant, first: bool) -> Scores:
    if x.softmaxed or x.less_peak:
        raise UnsupportedOperator(graph, "weights of attention that are joined with others")
    count, size = sink.tensor.shape[-1], x.shape[-1]
    sides = (count, 0) if first else (0, count)
    if sink.tensor.dim() > 1 and sink.tensor.shape[-2] > 1:  # the same for all queries, if it may
        once = sink.tensor[..., :1, :]
        if torch.equal(once.expand_as(sink.tensor), sink.tensor):
            graph.assume(sink.recipe, lambda t: torch.equal(t[..., :1, :].expand_as(t), t))
            sink = derive(lambda t: t[..., :1, :], sink)

    def wider(step: Step) -> Step:
        if step.operand is None:
            return step
        if not isinstance(step.operand, Constant) or step.opcode not in _NEUTRAL or step.swapped:
            raise UnsupportedOperator(graph, "a sink beside scores of attention with a computed bias")
        neutral = _NEUTRAL[step.opcode]
        whole = step.operand.tensor.shape[-1:] == (size,)
        return replace(step, operand=derive(lambda t: _padded(t, sides, neutral), step.operand)) if whole else step

    steps = tuple(wider(step) for step in x.scores)
    start = 0.0  # what becomes of the product of a query with a key that is 0
    for step in steps:
        if step.operand is None:
            start = result_of(step, start)
        elif step.operand.tensor.shape[-1:] != (size + count,) and (step.opcode not in ("mul", "div") or start):
            raise UnsupportedOperator(
                graph, "a sink beside scores of attention to which a number for each query is added"
            )
    if not math.isfinite(start):
        raise UnsupportedOperator(graph, "a sink beside scores of attention that are altered where they are 0")
    beside = derive(lambda t: _padded(t - start, (size, 0) if not first else (0, size), 0.0), sink)
    return replace(
        x,
        keys=F.pad(x.keys, (0, 0, *sides)),
        seen=_padded(x.seen.expand(*x.seen.shape[:-1], size), sides, True),
        scores=(*steps, Step("add", operand=beside)),
        sinks=(x.sinks[0] + sides[0], x.sinks[1] + sides[1]),
    )


def _padded(tensor: Tensor, sides: tuple[int, int], value: float) -> Tensor:
    return F.pad(tensor, sides, value=value)
