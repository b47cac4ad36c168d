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
from fastgen.generate.ir.graph import Constant, Graph, Value
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
    scores: tuple[Step, ...] = ()
    weighting: tuple[Step, ...] = ()
    softmaxed: bool = False
    nan: bool = False
    """Whether the softmax of a query that sees nothing is NaN."""
    least: float | None = None
    """What the greatest score of a query must reach, so that the softmax of a finite mask is 0."""
    place: Place | None = None
    """Of the product, where it may be written out."""

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.queries.shape[:-1], self.keys.shape[-2]))

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
        hiding = self
        if isinstance(operand, Constant) and not swapped:
            tensor = operand.tensor
            if opcode == "add" and tensor.is_floating_point() and bool((tensor <= -LEAST_MASK).any()):
                return self._added(graph, operand)
            if opcode == "mul" and bool((tensor == 0).any()):
                hiding = self.masked(graph, Constant(tensor == 0, _nonzero(operand)), 0.0, by_zero=True)
        return hiding._then(Step(opcode, operand=operand, swapped=swapped))

    def _added(self, graph: Graph, operand: Constant) -> Scores:
        """Returns the scores plus a mask: what is far below zero hides."""
        low = operand.tensor <= -LEAST_MASK
        hidden = float(operand.tensor[low].max())
        graph.assume(operand.recipe, lambda t: torch.equal(t <= -LEAST_MASK, low))
        masked = self._hide(graph, low, hidden, added=True)
        rest = operand.tensor.masked_fill(low, 0.0)
        if not operand.recipe.sources and not bool(rest.any()):
            return masked
        function = operand.recipe.function
        kept = Constant(rest, replace(operand.recipe, function=lambda *s: function(*s).masked_fill(low, 0.0)))
        return masked._then(Step("add", operand=kept))

    def _then(self, step: Step) -> Scores:
        hidden = self.hidden
        if self.softmaxed and step.opcode not in ("mul", "mulc", "div"):
            hidden = math.nan if hidden != hidden else _applied(step, hidden)
            if hidden != 0 and not bool(self.seen.all()):
                raise CompileError("weights of attention are altered so that keys that are masked get a weight")
        else:
            hidden = _applied(step, hidden)
        if self.softmaxed:
            return replace(self, weighting=(*self.weighting, step), hidden=hidden)
        return replace(self, scores=(*self.scores, step), hidden=hidden)

    # ---- masks

    def masked(self, graph: Graph, mask: Constant, value: float, by_zero: bool = False) -> Scores:
        """Returns the scores with ``value`` where the mask is True."""
        given = mask.tensor.bool()
        if torch.broadcast_shapes(given.shape, self.shape) != self.shape:
            raise UnsupportedOperator(graph, "scores of attention that a mask of more dimensions is applied to")
        graph.assume(mask.recipe, lambda t: torch.equal(t.bool(), given))
        if self.softmaxed and value != 0:
            raise UnsupportedOperator(graph, f"weights of attention that are filled with {value:g}")
        return self._hide(graph, given.clone(), value)

    def _hide(self, graph: Graph, mask: Tensor, value: float, added: bool = False) -> Scores:
        if self.softmaxed:
            whole = mask if mask.dim() < 2 or mask.shape[-1] == 1 else mask.all(-1, keepdim=True)
            unweighed = replace(self, seen=self.seen & ~whole)  # queries all of whose weights are 0
            if torch.equal(whole.expand_as(mask), mask):
                return unweighed
            keep = Constant.literal((~mask).float())
            return replace(unweighed, weighting=(*self.weighting, Step("mul", operand=keep)))
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
        least, seen = None, self.seen
        empty = ~seen.any(-1, keepdim=True)
        everything = bool(seen.all())
        if not everything and self.hidden != -math.inf:
            if not self.hidden <= -LEAST_MASK:
                raise CompileError(
                    f"keys are masked with {self.hidden:g} at {graph.place}: the softmax leaves them a weight, so that "
                    "later elements are seen. Mask with float('-inf')"
                )
            least = (self.hidden / 2 if self.added else self.hidden) + UNDERFLOW
            seen = seen | empty  # what is masked all over with a finite number is weighed evenly
        return replace(self, softmaxed=True, seen=seen, hidden=0.0, least=least, nan=not bool(seen.any(-1).all()))


def _nonzero(operand: Constant):
    function = operand.recipe.function
    return replace(operand.recipe, function=lambda *s: function(*s) == 0)


def _applied(step: Step, number: float) -> float:
    """Returns the result of a step on a number that stands where keys are hidden."""
    if math.isinf(number) and step.opcode in ("add", "addc", "sub") and not step.swapped:
        return number
    registers = [torch.tensor([number], dtype=torch.float64)]
    if step.operand is not None:
        if isinstance(step.operand, Value):
            if number == 0 and (step.opcode == "mul" or (step.opcode == "div" and not step.swapped)):
                return number
            return number if step.opcode in ("add", "sub") else math.nan
        tensor = step.operand.tensor.double()
        other = tensor.max() if step.opcode in ("add", "max") else tensor.abs().min()
        registers.append(other.reshape(1))
    order = (1, 0) if step.swapped else (0, 1)
    return float(apply_operation(step.opcode, Operation(OPCODE[step.opcode], 0, *order, x=step.x, y=step.y), registers))


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
        scores=moved(scores.scores), weighting=moved(scores.weighting),
    )  # fmt: skip


def _moved(operand: Value | Constant, move) -> Value | Constant:
    if isinstance(operand, Value):
        return replace(operand, ids=move(operand.ids))
    function = operand.recipe.function
    return Constant(move(operand.tensor), replace(operand.recipe, function=lambda *s: move(function(*s))))
