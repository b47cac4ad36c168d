"""Scores of attention while a network is traced: a product of queries and keys that is never written out.

``Scores`` stands for ``[*lead, T, S]`` numbers, one for every query and key: the product of the two, what elementwise
operators make of it, masks, a softmax over the keys. A product with values turns it into an attention node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastgen.generate.errors import CompileError, UnsupportedOperator
from fastgen.generate.ir.graph import Constant, Graph, Value, derive
from fastgen.generate.ir.instructions import Operation
from fastgen.generate.ir.opcodes import OPCODE
from fastgen.generate.ir.operation_values import apply_operation
from fastgen.generate.ir.records import Place

UNDERFLOW = 104.0
"""exp(-104) is 0 in float32."""
LEAST_MASK = 1000.0
"""A finite number below minus this hides keys, where the scores that are seen prove it."""


@dataclass(frozen=True)
class Step:
    """One operation on the scores, with another operand of a shape that broadcasts to theirs; ``swapped``: first."""

    opcode: str
    x: float = 0.0
    y: float = 0.0
    operand: Value | Constant | None = None
    swapped: bool = False


@dataclass(frozen=True)
class Scores:
    """Scores, or after the softmax weights, ``[*lead, T, S]``."""

    queries: Tensor
    """ids ``[*lead, T, depth]``"""
    keys: Tensor
    """ids ``[*lead, S, depth]``"""
    seen: Tensor
    """bool, of a shape that broadcasts to the scores'"""
    hidden: float = -math.inf
    """What stands where a key is not seen."""
    added: bool = False
    """Whether it was added to scores, which are taken to be less than half as large."""
    replaced: bool = False
    """Whether it was put in their place."""
    scores: tuple[Step, ...] = ()
    weighting: tuple[Step, ...] = ()
    softmaxed: bool = False
    nan: bool = False
    """Whether the softmax of a query that sees nothing is NaN."""
    least: float | None = None
    """What the greatest score of a query must reach, so that the softmax of a finite mask is 0."""
    even: Tensor | None = None
    """Queries all of whose scores are one number: they weigh all keys evenly. ``[..., T, 1]``"""
    place: Place | None = None
    """Of the product, where it may be written out."""
    sinks: tuple[int, int] = (0, 0)
    """How many of the first keys and of the last are 0, and stand for numbers put beside the scores."""
    left_out: tuple[int, int] = (0, 0)
    """Of these, how many are no longer there: they weigh no values."""
    less_peak: bool = False
    """Whether the greatest score of every query was subtracted, which a softmax does not notice."""

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.queries.shape[:-1], self.keys.shape[-2] - sum(self.left_out)))

    @property
    def ids(self) -> Tensor:
        """Stands for the elements where only their shape counts."""
        return torch.empty(1, dtype=torch.int64).expand(self.shape)

    # ---- elementwise operators

    def unary(self, opcode: str, x: float = 0.0, y: float = 0.0) -> Scores:
        return self._then(Step(opcode, x, y))

    def binary(self, graph: Graph, opcode: str, operand: Value | Constant, swapped: bool = False) -> Scores:
        """Returns the result of an operation with a tensor; zeros and -inf in a constant hide keys."""
        shape = operand.ids.shape if isinstance(operand, Value) else operand.tensor.shape
        if torch.broadcast_shapes(shape, self.shape) != self.shape:
            raise UnsupportedOperator(graph, "scores of attention that a tensor of more dimensions is combined with")
        step = Step(opcode, operand=operand, swapped=swapped)
        if isinstance(operand, Constant) and not swapped:
            tensor = operand.tensor
            if opcode == "add" and not self.softmaxed and bool((tensor <= -LEAST_MASK).any()):
                return self._added(graph, operand)
            if opcode == "mul" and bool((tensor == 0).any()):
                zero = derive(lambda t: t == 0, operand)
                if self.softmaxed:
                    return self._without_whole_rows(graph, zero)._then(step)
                return self.masked(graph, zero, 0.0)._then(step)
        return self._then(step)

    def _added(self, graph: Graph, operand: Constant) -> Scores:
        """Returns the scores plus a mask: what is far below zero hides."""
        low = operand.tensor <= -LEAST_MASK
        hidden = float(operand.tensor[low].max())
        graph.assume(operand.recipe, lambda t: torch.equal(t <= -LEAST_MASK, low) and float(t[low].max()) <= hidden)
        masked = self._hide(graph, low, hidden, added=True)
        kept = derive(lambda t: t.masked_fill(low, 0.0), operand)
        if not kept.recipe.sources and not bool(kept.tensor.any()):
            return masked
        return masked._then(Step("add", operand=kept))

    def _then(self, step: Step) -> Scores:
        if self.less_peak or (step.operand is not None and any(self.left_out)):
            raise CompileError(f"scores of attention are altered in the midst of a softmax{self._at()}")
        hidden = result_of(step, self.hidden)
        if self.softmaxed:
            scaled = step.operand is None or step.opcode == "mul" or (step.opcode == "div" and not step.swapped)
            if not (scaled and hidden == 0) and not bool(self.seen.all()):
                raise CompileError(f"weights of attention are altered so that masked keys get a weight{self._at()}")
            return replace(self, weighting=(*self.weighting, step), hidden=hidden)
        return replace(self, scores=(*self.scores, step), hidden=hidden)

    def _at(self) -> str:
        return "" if self.place is None else f" (the product at {self.place})"

    # ---- masks

    def masked(self, graph: Graph, mask: Constant, value: float) -> Scores:
        """Returns the scores with ``value`` where the mask is True."""
        given = mask.tensor.bool().clone()  # the module's own tensor may change in place
        if torch.broadcast_shapes(given.shape, self.shape) != self.shape:
            raise UnsupportedOperator(graph, "scores of attention that a mask of more dimensions is applied to")
        graph.assume(mask.recipe, lambda t: torch.equal(t.bool(), given))
        if not bool(given.any()):
            return self
        if not self.softmaxed:
            return replace(self._hide(graph, given, value), replaced=True)
        if value != 0:
            raise UnsupportedOperator(graph, f"weights of attention that are filled with {value:g}")
        return self._without_whole_rows(graph, mask)._then(Step("mul", operand=Constant.literal((~given).float())))

    def _without_whole_rows(self, graph: Graph, zero: Constant) -> Scores:
        """Returns the weights where queries all of whose weights are 0 see no key."""
        whole = zero.tensor.bool().expand(torch.broadcast_shapes(zero.tensor.shape, (1, self.shape[-1])))
        whole = whole.all(-1, keepdim=True)
        graph.assume(
            zero.recipe, lambda t: bool(t.bool().expand(whole.shape[:-1] + self.shape[-1:])[whole[..., 0]].all())
        )
        return replace(self, seen=self.seen & ~whole)

    def _hide(self, graph: Graph, mask: Tensor, value: float, added: bool = False) -> Scores:
        if not bool(self.seen.all()) and value != self.hidden and not bool((self.seen | mask).all()):
            if not max(value, self.hidden) <= -LEAST_MASK:
                raise UnsupportedOperator(graph, f"scores that are masked with {self.hidden:g} and with {value:g}")
            value = max(value, self.hidden)
        return replace(self, seen=self.seen & ~mask, hidden=value, added=self.added or added)

    # ---- softmax

    def softmax(self, graph: Graph) -> Scores:
        """Returns the weights: the softmax over the keys.

        Raises:
            CompileError: a finite mask leaves a weight to what it hides.
        """
        if self.softmaxed:
            raise UnsupportedOperator(graph, "a softmax of weights of attention")
        least, seen, even = None, self.seen, None
        if not bool(seen.all()) and self.hidden != -math.inf:
            if not self.hidden <= -LEAST_MASK:
                number = f"{self.hidden:g}" if self.hidden == self.hidden else "a number that the input changes"
                raise CompileError(
                    f"keys are masked with {number} at {graph.place}: the softmax leaves them a weight, so that later "
                    "elements are seen. Mask with float('-inf')"
                )
            least = (self.hidden / 2 if self.added else self.hidden) + UNDERFLOW
            empty = ~seen.any(-1, keepdim=True)  # what is masked all over with a finite number is weighed by the rest
            seen, even = seen | empty, empty if self.replaced else None
        nan = not bool(seen.any(-1).all())
        return replace(self, softmaxed=True, seen=seen, hidden=0.0, least=least, nan=nan, even=even, less_peak=False)


@dataclass(frozen=True)
class SoftmaxPart:
    """A part of a softmax that is written by hand: its "peak", its "powers" of e, or their "total"."""

    kind: str
    scores: Scores


def result_of(step: Step, number: float) -> float:
    """Returns the greatest result of a step on a number that stands where keys are hidden; NaN where it is unknown."""
    if math.isinf(number) and step.opcode in ("add", "addc", "sub") and not step.swapped:
        return number
    registers = [torch.tensor([number], dtype=torch.float64)]
    if step.operand is not None:
        if isinstance(step.operand, Value):
            stays = step.opcode == "mul" or (step.opcode == "div" and not step.swapped)
            return number if number == 0 and stays else math.nan
        registers.append(step.operand.tensor.double().flatten())
    order = (1, 0) if step.swapped else (0, 1)
    operation = Operation(OPCODE[step.opcode], 0, *order, x=step.x, y=step.y)
    results = apply_operation(step.opcode, operation, registers)
    return float(results.max())


def lead_moved(scores: Scores, move: Callable[[Tensor], Tensor]) -> Scores:
    """Returns the scores with their leading dimensions moved: ``move`` does it to ``[*lead, a, b]``."""
    queries, lead = move(scores.queries), scores.shape[:-2]

    def full(tensor: Tensor) -> Tensor:
        tensor = tensor.reshape(*[1] * (2 - tensor.dim()), *tensor.shape)
        rest = tensor.shape[-2:]
        if tensor.shape[:-2].numel() == 1:  # nothing to move
            return tensor.reshape(*[1] * (queries.dim() - 2), *rest)
        tensor = tensor.reshape(*[1] * (len(lead) + 2 - tensor.dim()), *tensor.shape)
        return move(tensor.expand(*lead, *rest))

    def moved(steps: Sequence[Step]) -> tuple[Step, ...]:
        return tuple(
            step if step.operand is None else replace(step, operand=_moved(step.operand, full)) for step in steps
        )

    return replace(
        scores, queries=queries, keys=move(scores.keys), seen=full(scores.seen),
        even=None if scores.even is None else full(scores.even), scores=moved(scores.scores),
        weighting=moved(scores.weighting),
    )  # fmt: skip


def _moved(operand: Value | Constant, move: Callable[[Tensor], Tensor]) -> Value | Constant:
    return replace(operand, ids=move(operand.ids)) if isinstance(operand, Value) else derive(move, operand)
