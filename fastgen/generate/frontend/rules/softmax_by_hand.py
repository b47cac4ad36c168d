"""A softmax of scores that is written out: the greatest score subtracted, powers of e, divided by their sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch.utils._pytree import tree_any

from fastgen.generate.errors import UnsupportedOperator
from fastgen.generate.frontend.rules.attention import SCORE_RULES, score_rule
from fastgen.generate.frontend.scores import Scores, SoftmaxPart
from fastgen.generate.ir.graph import Graph

aten = torch.ops.aten


@score_rule(aten.amax.default)
def amax(graph: Graph, x: Scores, dims=(), keepdim: bool = False) -> SoftmaxPart:
    dims = [dims] if isinstance(dims, int) else dims
    if x.softmaxed or not keepdim or [d % len(x.shape) for d in dims] != [len(x.shape) - 1]:
        raise UnsupportedOperator(graph, "a maximum of scores of attention that no softmax subtracts")
    return SoftmaxPart("peak", x)


@score_rule(aten.max.dim)
def max_dim(graph: Graph, x: Scores, dim: int, keepdim: bool = False) -> tuple:
    return amax(graph, x, dim, keepdim), None


@score_rule(aten.exp.default)
def exp(graph: Graph, x: Scores) -> Scores | SoftmaxPart:
    return SoftmaxPart("powers", x) if x.less_peak else x.unary("exp")


def _refused(graph: Graph, operator) -> UnsupportedOperator:
    return UnsupportedOperator(
        graph,
        f"{operator} of a part of a softmax of scores of attention",
        change="Write softmax(-1), or exp(x - x.amax(-1, keepdim=True)) divided by its sum over the keys",
    )


def _with_parts(operator, kind: str, make: Callable) -> None:
    """Adds to the rule of an operator what it makes of a part of a softmax."""
    rule = SCORE_RULES[operator]

    def either(graph: Graph, *args, **kwargs):
        parts = [a for a in args if isinstance(a, SoftmaxPart)]
        if not parts:
            return rule(graph, *args, **kwargs)
        found = make(graph, *args, **kwargs) if parts[-1].kind == kind else None
        if found is None:
            raise _refused(graph, operator)
        return found

    SCORE_RULES[operator] = either


def _less(graph: Graph, x, peak, *_, **__) -> Scores | None:
    same = isinstance(peak, SoftmaxPart) and x is peak.scores
    return replace(x, less_peak=True) if same else None


def _total(graph: Graph, powers, dims, keepdim: bool = False, **_) -> SoftmaxPart | None:
    shape = powers.scores.shape
    over_keys = keepdim and [d % len(shape) for d in dims] == [len(shape) - 1]
    return SoftmaxPart("total", powers.scores) if over_keys else None


def _divided(graph: Graph, powers, total, *_, **__) -> Scores | None:
    parts = isinstance(powers, SoftmaxPart) and isinstance(total, SoftmaxPart)
    same = parts and powers.kind == "powers" and powers.scores is total.scores
    return total.scores.softmax(graph) if same else None


_PARTS: dict[object, tuple[str, Callable]] = {
    aten.sub.Tensor: ("peak", _less),
    aten.sum.dim_IntList: ("powers", _total),
    aten.div.Tensor: ("total", _divided),
}
for _operator, (_kind, _make) in _PARTS.items():
    _with_parts(_operator, _kind, _make)


def check_parts(graph: Graph, operator, arguments) -> None:
    """Raises UnsupportedOperator where an operator takes a part of a softmax that it does not go on with."""
    if operator not in _PARTS and tree_any(lambda a: isinstance(a, SoftmaxPart), arguments):
        raise _refused(graph, operator)
