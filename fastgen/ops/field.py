"""Fields of linear maps with an activation between them: f(x), and products with its Jacobian, all probes at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fastgen.ops.precision import in_float32
from fastgen.ops.registry import Op
from fastgen.reference import hutchinson_trace as reference
from fastgen.reference.hutchinson_trace import ACTIVATIONS, LinearMap, activate, curvature

_NUMBERS = 1 << 21
"""Of the tangents that go through a layer at once: they stay in the cache from one layer to the next."""


class Kernels(NamedTuple):
    """The compiled ``contract`` of a field, and its gradient: of x, and of all parameters one after the other."""

    value: Op
    backward: Op


@dataclass(frozen=True)
class Field:
    """What ``fastgen.ops.hutchinson_trace`` knows the derivatives of: see ``DenseField`` and ``ConvField``."""

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    activation: str

    linear: ClassVar[LinearMap]
    plane: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            allowed = ", ".join(map(repr, ACTIVATIONS))
            raise ValueError(f"activation is {self.activation!r}; it must be one of {allowed}")
        if len(self.weights) < 2 or len(self.biases) != len(self.weights):
            raise ValueError(
                f"weights has {len(self.weights)} and biases {len(self.biases)} tensors; they must have equally many, "
                "at least 2"
            )

    @property
    def has_closed_form(self) -> bool:
        """Whether there is a method ``trace`` that finds the trace without a product."""
        return False

    def check(self, x: Tensor) -> None:
        """Raises a ValueError unless x is of the field's shape, and of as many samples as the biases are."""
        taken = f"[N, {self.weights[0].shape[1]}{self.plane}]"
        if x.dim() != self.weights[0].dim() or x.shape[1] != self.weights[0].shape[1]:
            raise ValueError(f"x has shape {tuple(x.shape)}; the field takes {taken}")
        for i, bias in enumerate(self.biases):
            if bias.dim() == x.dim() and len(bias) not in (1, len(x)):
                raise ValueError(f"x has {len(x)} samples, but biases[{i}] is of {len(bias)}")

    def __call__(self, x: Tensor) -> Tensor:
        self.check(x)
        return reference.field(self.linear, self.activation, x, self._parameters(x))

    def contract(self, x: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) and ``sum_p left_p^T (df/dx) right_p`` [N], for the constants left and right, [P, N or 1, D...].

        Differentiable in x and the parameters to any order; twice, within ``torch.func`` and under ``torch.compile`` by
        way of the plain formula.
        """
        with torch.autocast(x.device.type, enabled=False):
            x, left, right, *parameters = in_float32(x, left.detach(), right.detach(), *self._parameters(x))
            if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
                return reference.field_trace(self.linear, self.activation, x, left, right, *parameters)
            if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters)):
                return _Trace.apply(self.linear, self.activation, self._kernels(x), x, left, right, *parameters)
            with torch.no_grad():
                if kernels := self._kernels(x):
                    return kernels.value(list(ACTIVATIONS).index(self.activation), x, left, right, parameters)
                return _Forward(self.linear, self.activation, x, left, right, parameters, keep=False).result

    @torch.no_grad()
    def products(self, x: Tensor, vectors: Tensor) -> Tensor:
        """v^T (df/dx) of every v in [P, N or 1, D...]: [P, N, D...], without a gradient."""
        return self._powers(x, vectors, 1)[1][0]

    @torch.no_grad()
    def power_products(self, x: Tensor, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """f(x) and the power series' terms ``v^T J, v^T J^2, ..., v^T J^count`` with J = df/dx, without a gradient.

        The activations' derivatives are computed once for all of them. ``vectors`` is [N, D...], or [P, N, D...] for
        several v of a sample; the terms are stacked, [count, N, D...] or [count, P, N, D...].

        Raises:
            ValueError: x or vectors of another shape, or a negative count.
        """
        self.check(x)
        if vectors.shape[-x.dim() :] != x.shape or vectors.dim() > x.dim() + 1:
            given, shape = tuple(vectors.shape), tuple(x.shape)
            raise ValueError(f"vectors has shape {given}; for x of {shape} it must be {shape} or [P, *{shape}]")
        if count < 0:
            raise ValueError(f"count is {count}; it must be at least 0")
        return self._powers(x, vectors, count)

    def _powers(self, x: Tensor, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            x, vectors, *parameters = in_float32(x, vectors, *self._parameters(x))
            parameters[::2] = [self.linear.arrange(weight) for weight in parameters[::2]]
            return reference.field_powers(self.linear, self.activation, count, x, vectors, *parameters)

    def _kernels(self, x: Tensor) -> Kernels | None:
        """What has compiled it for layers of this size and x of this kind."""
        return None

    def _parameters(self, x: Tensor) -> list[Tensor]:
        """Weight, bias, weight, bias, ... as the plain formula takes them."""
        return [tensor for layer in zip(self.weights, self.biases, strict=True) for tensor in layer]


def _chunks(vectors: Tensor, x: Tensor, weights: Sequence[Tensor]) -> Iterator[slice]:
    """The probes in [P, N or 1, D...], so many at a time."""
    plane = x[:1, 0].numel() if x.dim() > 2 else 1
    each = max(1, len(x)) * plane * max(len(weight) for weight in weights)
    step = max(1, _NUMBERS // max(1, each))
    return (slice(begin, begin + step) for begin in range(0, len(vectors), step))


class _Forward:
    """What ``_Trace`` computes, and what its backward needs of it.

    The right vectors are carried forward to the last hidden layer, the left ones back to it: there they meet. ``moved``
    has the right vectors before each activation's derivative, ``met`` the left ones.
    """

    def __init__(
        self,
        linear: LinearMap,
        activation: str,
        x: Tensor,
        left: Tensor,
        right: Tensor,
        parameters: Sequence[Tensor],
        keep: bool,
    ) -> None:
        weights, biases = [linear.arrange(weight) for weight in parameters[::2]], parameters[1::2]
        self.before, self.hidden, slopes = [], [x], []
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            self.before.append(linear.push(self.hidden[-1], weight, bias))
            value, slope = activate(activation, self.before[-1])
            self.hidden.append(value)
            slopes.append(slope)
        y = linear.push(self.hidden[-1], weights[-1], biases[-1])
        self.slopes = slopes
        self.moved: list[list[Tensor]] = []
        self.met: list[Tensor] = []
        total = torch.zeros_like(slopes[-1])
        for chunk in _chunks(right, x, weights):
            moved = [linear.push(right[chunk], weights[0])]
            for slope, weight in zip(slopes[:-1], weights[1:-1], strict=True):
                last = moved[-1]
                scaled = last * slope if keep or last.shape[1] != len(x) else last.mul_(slope)
                pushed = linear.push(scaled, weight)
                moved = [*moved, pushed] if keep else [pushed]
            met = linear.pull(left[chunk], parameters[-2])
            total += (moved[-1] * met).sum(0)
            if keep:
                self.moved.append(moved)
                self.met.append(met)
        self.result = y, (total * slopes[-1]).sum(tuple(range(1, x.dim())))


class _Trace(torch.autograd.Function):
    """``reference.field_trace``, with the gradient written by hand."""

    @staticmethod
    def forward(
        ctx,
        linear: LinearMap,
        activation: str,
        kernels: Kernels | None,
        x: Tensor,
        left: Tensor,
        right: Tensor,
        *parameters: Tensor,
    ):
        ctx.linear, ctx.activation, ctx.kernels = linear, activation, kernels
        if kernels:
            ctx.save_for_backward(x, left, right, *parameters)
            return kernels.value(list(ACTIVATIONS).index(activation), x, left, right, list(parameters))
        ran = _Forward(linear, activation, x, left, right, parameters, keep=True)
        moved = [tensor for chunk in ran.moved for tensor in chunk]
        ctx.save_for_backward(x, left, right, *parameters, *ran.before, *ran.hidden[1:], *ran.slopes, *ran.met, *moved)
        ctx.chunks = len(ran.met)
        return ran.result

    @staticmethod
    def backward(ctx, grad_y: Tensor, grad_trace: Tensor):
        layers = (len(ctx.needs_input_grad) - 6) // 2
        tensors = iter(ctx.saved_tensors)

        def take(count: int) -> list[Tensor]:
            return [next(tensors) for _ in range(count)]

        x, left, right = take(3)
        parameters = take(2 * layers)
        if torch.is_grad_enabled():
            found = _again(ctx.linear, ctx.activation, x, left, right, parameters, grad_y, grad_trace)
        elif ctx.kernels:
            number = list(ACTIVATIONS).index(ctx.activation)
            grad_x, grads = ctx.kernels.backward(number, grad_y, grad_trace, x, left, right, parameters)
            each = grads.split([parameter.numel() for parameter in parameters])
            shaped = [grad.view_as(parameter) for grad, parameter in zip(each, parameters, strict=True)]
            found = [grad_x, *shaped]
        else:
            before, after, slopes = (take(layers - 1) for _ in range(3))
            met = take(ctx.chunks)
            moved = [take(layers - 1) for _ in met]
            found = _gradients(
                ctx.linear,
                ctx.activation,
                ctx.needs_input_grad[3],
                any(ctx.needs_input_grad[6:]),
                (left, right),
                parameters,
                before,
                [x, *after],
                slopes,
                met,
                moved,
                grad_y,
                grad_trace,
            )
        return None, None, None, found[0], None, None, *found[1:]


def _gradients(
    linear: LinearMap,
    activation: str,
    followed: bool,
    trained: bool,
    pairs: tuple[Tensor, Tensor],
    parameters: list[Tensor],
    before: list[Tensor],
    hidden: list[Tensor],
    slopes: list[Tensor],
    met: list[Tensor],
    moved: list[list[Tensor]],
    grad_y: Tensor,
    grad_trace: Tensor,
) -> list[Tensor | None]:
    """Of x (if followed) and the parameters (if trained).

    First back through the tangents, then through f with what their slopes add.
    """
    (left, right), x = pairs, hidden[0]
    weights, biases = [linear.arrange(weight) for weight in parameters[::2]], parameters[1::2]
    grad_weights: list[Tensor | None] = [None] * len(weights)
    grad_slopes = [torch.zeros_like(slope) for slope in slopes]

    def add_outer(k: int, v: Tensor, h: Tensor) -> None:
        if not trained:
            return
        if v.shape[1] != h.shape[1]:
            v, h = (t if t.shape[1] == 1 else t.sum(1, keepdim=True) for t in (v, h))
        grad = linear.outer(v.flatten(0, 1), h.flatten(0, 1), weights[k])
        grad_weights[k] = grad if grad_weights[k] is None else grad_weights[k].add_(grad)

    each = grad_trace.view(-1, *[1] * (x.dim() - 1))
    for chunk, here, tangents in zip(_chunks(right, x, weights), met, moved, strict=True):
        carried = here * each
        add_outer(-1, left[chunk], tangents[-1] * (slopes[-1] * each))
        for k in reversed(range(len(slopes))):
            grad_slopes[k] += (tangents[k] * carried).sum(0)
            carried = carried.mul_(slopes[k]) if carried.shape[1] == len(x) else carried * slopes[k]
            add_outer(k, carried, tangents[k - 1] * slopes[k - 1] if k else right[chunk])
            if k:
                carried = linear.pull(carried, weights[k])
    gradient, grad_biases = grad_y, []
    for k in reversed(range(len(weights))):
        add_outer(k, gradient[None], hidden[k][None])
        grad_biases.append(gradient.sum_to_size(biases[k].shape))
        gradient = linear.pull(gradient, weights[k]) if k or followed else None
        if k:
            bend = curvature(activation, before[k - 1])
            gradient = (gradient * slopes[k - 1]).addcmul_(grad_slopes[k - 1], bend)
    paired = zip(grad_weights, reversed(grad_biases), strict=True)
    return [gradient, *(grad for pair in paired for grad in pair)]


def _again(
    linear: LinearMap,
    activation: str,
    x: Tensor,
    left: Tensor,
    right: Tensor,
    parameters: list[Tensor],
    grad_y: Tensor,
    grad_trace: Tensor,
) -> list[Tensor | None]:
    """The gradients by way of the plain formula, which can be differentiated again."""
    given = [x, *parameters]
    wanted = [i for i, tensor in enumerate(given) if tensor.requires_grad]
    outputs = reference.field_trace(linear, activation, x, left, right, *parameters)
    found = torch.autograd.grad(
        outputs, [given[i] for i in wanted], (grad_y, grad_trace), create_graph=True, materialize_grads=True
    )
    gradients = dict(zip(wanted, found, strict=True))
    return [gradients.get(i) for i in range(len(given))]
