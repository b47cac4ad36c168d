"""Attention: products of two tensors that depend on the input, and what is done to scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastgen.generate.errors import UnsupportedOperator
from fastgen.generate.frontend.attended import attended
from fastgen.generate.frontend.ranges import TRUTH
from fastgen.generate.frontend.rules import contraction
from fastgen.generate.frontend.rules.elementwise import constant, scalar
from fastgen.generate.frontend.rules.registry import RULES, register_rule
from fastgen.generate.frontend.scores import Scores, lead_moved
from fastgen.generate.ir.channels import same_row
from fastgen.generate.ir.graph import Constant, Graph, Value, derive

aten = torch.ops.aten
Operand = Value | Constant | Scores

_MOST_PRODUCTS = 1 << 20
"""Products of two computed tensors that are written out one by one."""

KEYS_LAST = "Write scores as [..., queries, keys] = q @ k.transpose(-2, -1), their softmax over the last dimension"
_USES_OF_SCORES = (
    "Scores may be scaled, capped, biased and masked, head by head, put through a softmax over the keys, and weigh "
    "values; nothing may order them, choose among them or mix the heads (docs/generate.md, Attention)"
)
_WEIGH_EACH = "Weigh the values by each of them, and combine what comes out: (a - b) @ v is a @ v - b @ v"

SCORE_RULES: dict[object, Callable] = {}
"""Rules of operators of whose operands one is scores."""


def score_rule(*operators: object) -> Callable[[Callable], Callable]:
    """Registers the rule of operators that take scores."""

    def register(rule: Callable) -> Callable:
        SCORE_RULES.update(dict.fromkeys(operators, rule))
        return rule

    return register


# ---- products


def product(graph: Graph, a: Value, b: Value) -> Value | Scores:
    """``a @ b`` of two computed tensors: scores where they are queries and keys of several positions."""
    if a.ids.dim() < 2 or b.ids.dim() < 2:
        raise UnsupportedOperator(graph, contraction.TWO_TENSORS)
    lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    queries = a.ids.expand(*lead, *a.shape[-2:])
    keys = b.ids.transpose(-1, -2).expand(*lead, b.shape[-1], b.shape[-2])
    scores = Scores(queries, keys, torch.ones(1, 1, dtype=torch.bool), place=graph.place)
    if same_row(graph, keys, -2) is False and same_row(graph, keys, -1) is not False:
        return scores
    return written_out(graph, scores)


def written_out(graph: Graph, scores: Scores) -> Value:
    """Returns a product as a tensor of its own, where nothing was done to it and it is small.

    Raises:
        UnsupportedOperator: it is none such.
    """
    *lead, _, depth = scores.queries.shape
    if scores.scores or scores.softmaxed or not bool(scores.seen.all()):
        raise UnsupportedOperator(
            graph, "scores of attention, in another use than as weights of values,", change=_USES_OF_SCORES
        )
    across = any(same_row(graph, ids, -1) is False for ids in (scores.queries, scores.keys))
    if across or scores.shape.numel() * depth > _MOST_PRODUCTS:
        with graph.at(scores.place or graph.place):
            raise UnsupportedOperator(graph, contraction.TWO_TENSORS)
    names = "".join(chr(ord("a") + d) for d in range(len(lead)))
    pair = Value(scores.queries), Value(scores.keys)
    return contraction.multiply_and_sum(graph, *pair, f"{names}xz", f"{names}yz", f"{names}xy")


@register_rule(aten.matmul.default, aten.mm.default, aten.bmm.default)
def matmul(graph: Graph, a: Operand, b: Operand) -> Value | Scores:
    if isinstance(a, Scores) or isinstance(b, Scores):
        return _weigh(graph, a, b)
    return product(graph, a, b) if isinstance(a, Value) and isinstance(b, Value) else contraction.matmul(graph, a, b)


SCORE_RULES.update(dict.fromkeys((aten.matmul.default, aten.mm.default, aten.bmm.default), matmul))


def _weigh(graph: Graph, weights: Operand, values: Operand) -> Value:
    if not isinstance(weights, Scores) or isinstance(values, Scores):
        raise UnsupportedOperator(graph, "a product of which the second factor is scores of attention")
    ids = values.ids if isinstance(values, Value) else graph.constant_ids(values, Value(weights.keys))
    return attended(graph, weights, ids)


@register_rule(aten.addmm.default, aten.baddbmm.default)
def addmm(graph: Graph, c: Operand, a: Operand, b: Operand, *, beta=1, alpha=1) -> Value | Scores:
    if not (isinstance(a, Value) and isinstance(b, Value)) or isinstance(c, Scores):
        return contraction.addmm(graph, c, a, b, beta=beta, alpha=alpha)
    found = product(graph, a, b)
    if isinstance(found, Value):
        return contraction.scaled_sum(graph, c, found, beta, alpha)
    found = found if alpha == 1 else found.unary("mulc", x=float(alpha))
    if beta == 0 or (isinstance(c, Constant) and not c.tensor.any() and not c.recipe.sources):
        return found
    return _binary("add")(graph, found, _times(graph, c, beta))


def _times(graph: Graph, operand: Value | Constant, number: float) -> Value | Constant:
    if number == 1:
        return operand
    return (
        RULES[aten.mul.Tensor](graph, operand, number)
        if isinstance(operand, Value)
        else derive(lambda t: t * number, operand)
    )


@register_rule(aten.einsum.default)
def einsum(graph: Graph, equation: str, operands: Sequence[Operand], **options) -> Value | Scores:
    left, _, out = equation.replace(" ", "").partition("->")
    names = left.split(",")
    plain = len(names) == 2 and "->" in equation and "." not in equation
    if plain and all(isinstance(o, (Value, Scores)) for o in operands):
        found = _einsum(graph, names, out, operands)
        if found is not None:
            return found
    if any(isinstance(o, Scores) for o in operands):
        raise UnsupportedOperator(graph, f"einsum {equation!r} of scores of attention", change=_USES_OF_SCORES)
    return contraction.einsum(graph, equation, operands, **options)


SCORE_RULES[aten.einsum.default] = einsum


def _einsum(graph: Graph, names: list[str], out: str, operands: Sequence[Operand]) -> Value | Scores | None:
    """Returns a batched matrix product of two computed tensors; None where the einsum is none."""
    if any(len(set(n)) < len(n) for n in (*names, out)):
        return None
    if isinstance(operands[1], Scores):
        names, operands = names[::-1], operands[::-1]
    (first, second), (a, b) = names, operands
    summed = [c for c in first if c in second and c not in out]
    rows, columns = ([c for c in x if c not in y and c in out] for x, y in ((first, second), (second, first)))
    if isinstance(a, Scores):
        rows = [c for c in rows if c == first[-2]]
    elif len(rows) > 1 or len(columns) > 1:  # heads that share keys: one of the operands has no letter for them
        rows, columns = ([c for c in found if c == out[at]] for found, at in ((rows, -2), (columns, -1)))
    lead = [c for c in out if c not in rows + columns]
    if (
        len(summed) != 1
        or len(rows) != 1
        or len(columns) != 1
        or {*first, *second} != {*lead, *rows, *columns, *summed}
    ):
        return None
    right = Value(_aligned(b.ids, second, [*lead, *summed, *columns]))
    if isinstance(a, Scores):
        if list(first) != [*first[:-2], *rows, *summed] or set(first[:-2]) != set(lead):
            return None
        order = [first.index(c) for c in lead]
        a = lead_moved(a, lambda t: t.permute(*order, len(order), len(order) + 1))
        result = _weigh(graph, a, right)
    else:
        result = product(graph, Value(_aligned(a.ids, first, [*lead, *rows, *summed])), right)
    made = [*lead, *rows, *columns]
    if list(out) == made:
        return result
    if isinstance(result, Value):
        return Value(result.ids.permute([made.index(c) for c in out]))
    if list(out[-2:]) != made[-2:]:
        raise UnsupportedOperator(
            graph, "scores of attention of which the keys are not the last dimension", change=KEYS_LAST
        )
    return result


def _aligned(ids: Tensor, names: str, wanted: list[str]) -> Tensor:
    ids = ids.permute([names.index(c) for c in wanted if c in names])
    for place, c in enumerate(wanted):
        ids = ids if c in names else ids.unsqueeze(place)
    return ids


# ---- scaled_dot_product_attention


@register_rule(aten.scaled_dot_product_attention.default)
def scaled_dot_product_attention(
    graph: Graph, query: Value, key: Value, value: Value, mask: Value | Constant | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Value:  # fmt: skip
    if dropout_p:
        raise UnsupportedOperator(graph, "attention with dropout, which eval does not turn off (pass dropout_p=0.0)")
    ids = [_ids(graph, o, query) for o in (query, key, value)]
    if enable_gqa:
        ids[1:] = [t.repeat_interleave(ids[0].shape[-3] // t.shape[-3], -3) for t in ids[1:]]
    lead = torch.broadcast_shapes(*[t.shape[:-2] for t in ids])
    queries, keys, values = (t.expand(*lead, *t.shape[-2:]) for t in ids)
    scores = Scores(queries, keys, torch.ones(1, 1, dtype=torch.bool))
    scores = scores.unary("mulc", x=query.shape[-1] ** -0.5 if scale is None else float(scale))
    if is_causal:
        scores = replace(scores, seen=torch.ones(scores.shape[-2:], dtype=torch.bool).tril())
    if mask is not None:
        if isinstance(mask, Constant) and mask.tensor.dtype == torch.bool:
            scores = scores.masked(graph, derive(torch.logical_not, mask), -math.inf)
        elif isinstance(mask, Value) and (mask.low, mask.high) == TRUTH:
            raise UnsupportedOperator(graph, "attention with a mask that depends on the input")
        else:
            scores = scores.binary(graph, "add", mask)
    return attended(graph, replace(scores.softmax(graph), nan=False), values)


def _ids(graph: Graph, operand: Value | Constant, beside: Value) -> Tensor:
    return operand.ids if isinstance(operand, Value) else graph.constant_ids(operand, beside)


# ---- what is done to scores


for _name in ("neg", "abs", "exp", "tanh", "sigmoid", "relu", "log", "sqrt"):
    score_rule(getattr(aten, _name).default)(lambda graph, x, _code=_name: x.unary(_code))


@score_rule(aten.clamp.default)
def clamp(graph: Graph, x: Scores, low=None, high=None) -> Scores:
    return x.unary("clamp", -math.inf if low is None else float(low), math.inf if high is None else float(high))


def _binary(opcode: str) -> Callable:
    def rule(graph: Graph, a, b, alpha: float = 1) -> Scores:
        if isinstance(a, Scores) and isinstance(b, Scores):
            return _joined(graph, a, b, opcode, alpha)
        swapped = not isinstance(a, Scores)
        x, other = (b, a) if swapped else (a, b)
        number = scalar(other)
        if number is not None:
            if opcode in ("add", "sub") and not swapped:
                return x.unary("addc", x=number * alpha * (1 if opcode == "add" else -1))
            if opcode in ("add", "mul") or (opcode == "div" and not swapped):
                code = {"add": "addc", "mul": "mulc", "div": "mulc"}[opcode]
                return x.unary(code, x=1 / number if opcode == "div" else number)
        other = constant(other)
        if opcode == "sub" and not swapped and isinstance(other, Constant):
            return x.binary(graph, "add", derive(lambda t: t * -alpha, other))
        if alpha != 1:
            other = _times(graph, other, alpha)
        return x.binary(graph, opcode, other, swapped and opcode in ("sub", "div"))

    return rule


for _name in ("add", "sub", "mul", "div"):
    _operators = [getattr(getattr(aten, _name), o) for o in ("Tensor", "Scalar")]
    score_rule(*_operators)(_binary(_name))


def _joined(graph: Graph, a: Scores, b: Scores, opcode: str, alpha: float) -> Scores:
    """The sum of two products is the product of the joined channels."""
    alike = not a.softmaxed and not b.softmaxed and a.scores == b.scores and opcode == "add" and alpha == 1
    linear = all(step.opcode in ("mulc", "neg") for step in a.scores)
    if not alike or not linear or a.shape != b.shape or not bool(a.seen.all() and b.seen.all()):
        raise UnsupportedOperator(graph, f"{opcode} of two scores of attention", change=_WEIGH_EACH)
    return replace(a, queries=torch.cat([a.queries, b.queries], -1), keys=torch.cat([a.keys, b.keys], -1))


@score_rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(graph: Graph, x: Operand, mask: Operand, value) -> Scores:
    number = scalar(value)
    if not isinstance(x, Scores) or not isinstance(mask, Constant) or number is None:
        raise UnsupportedOperator(graph, "scores of attention that are masked by what depends on the input")
    return x.masked(graph, mask, number)


@score_rule(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf)
def where(graph: Graph, mask: Operand, a, b) -> Scores:
    x, other = (a, b) if isinstance(a, Scores) else (b, a)
    number = None if isinstance(other, Scores) else scalar(other)
    if number is None and isinstance(other, Constant) and len(other.tensor.unique()) == 1:
        number = float(other.tensor.flatten()[0])
        graph.assume(other.recipe, lambda t: bool((t == number).all()))
    if not isinstance(mask, Constant) or number is None:
        raise UnsupportedOperator(graph, "scores of attention, or others that depend on the input")
    return x.masked(graph, derive(torch.logical_not, mask) if x is a else mask, number)


@score_rule(aten.tril.default, aten.triu.default)
def triangle(graph: Graph, x: Scores, diagonal: int = 0, *, operator) -> Scores:
    kept = operator(torch.ones(x.shape[-2:]), diagonal)
    return x.masked(graph, Constant.literal(kept == 0), 0.0)


@score_rule(aten.softmax.int, aten._softmax.default)
def softmax(graph: Graph, x: Scores, dim: int, *_, **__) -> Scores:
    if dim % len(x.shape) != len(x.shape) - 1:
        raise UnsupportedOperator(graph, "a softmax of scores of attention that is not over the keys", change=KEYS_LAST)
    return x.softmax(graph)


@score_rule(aten.nan_to_num.default)
def nan_to_num(graph: Graph, x: Scores, nan: float | None = None, *_, **__) -> Scores:
    if not x.softmaxed or nan:
        raise UnsupportedOperator(graph, "nan_to_num of scores of attention")
    return replace(x, nan=False)


@score_rule(aten.sum.dim_IntList)
def sum_(graph: Graph, x: Scores, dims, keepdim: bool = False, **_) -> Value:
    """Returns the sums of the weights: attention to values that are 1."""
    if [d % len(x.shape) for d in dims] != [len(x.shape) - 1]:
        raise UnsupportedOperator(graph, "a sum of scores of attention that is not over the keys")
    ones = graph.value_ids_of(torch.ones(*x.shape[:-2], x.shape[-1], 1))
    total = attended(graph, x, ones).ids
    return Value(total if keepdim else total[..., 0])


# ---- movement


@score_rule(
    aten.clone.default, aten.contiguous.default, aten.detach.default, aten.dropout.default, aten._to_copy.default,
    aten.to.dtype, aten.to.dtype_layout, aten.type_as.default, aten.alias.default, aten.lift_fresh_copy.default,
)  # fmt: skip
def same(graph: Graph, x: Scores, *_, **__) -> Scores:
    return x


@score_rule(
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.expand.default, aten.transpose.int, aten.permute.default, aten.unflatten.int, aten.flatten.using_ints,
    aten.slice.Tensor, aten.select.int,
)  # fmt: skip
def moved(graph: Graph, x: Scores, *args, operator) -> Scores:
    """Moves the leading dimensions, as the operator does with a tensor that has one number for each of them."""
    lead, rest = x.shape[:-2], x.shape[-2:]
    queries, keys = (torch.arange(n, dtype=torch.int32).reshape(-1, *[1] * d) for d, n in ((1, rest[0]), (0, rest[1])))
    for places in (queries, keys):
        result = operator(places.expand(x.shape), *args)
        if result.shape[-2:] != rest or not torch.equal(result, places.expand(result.shape)):
            raise UnsupportedOperator(graph, f"{operator} that moves queries or keys of attention", change=KEYS_LAST)
    numbers = torch.arange(lead.numel(), dtype=torch.int32).reshape(*lead, 1, 1)
    order = operator(numbers.expand(x.shape), *args)[..., 0, 0].long()

    def move(tensor: Tensor) -> Tensor:
        return tensor.flatten(0, -3)[order] if tensor.dim() > 2 else tensor[None][order]

    return lead_moved(x, move)
