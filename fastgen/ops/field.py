"""Fields of linear maps with an activation between them: f(x), and products with its Jacobian, all probes at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fastgen.ops.precision import in_float32, without_autocast
from fastgen.ops.registry import Op
from fastgen.ops.tangent_activation import tangent_activation, tangent_activation_backward, tangent_contraction
from fastgen.reference import hutchinson_trace as reference
from fastgen.reference.hutchinson_trace import ACTIVATIONS, LinearMap

_NUMBERS = 1 << 21
"""Numbers of the tangents that go through a layer at once, so that they stay in the cache."""

_KEPT, _WORTH_KEEPING = 1 << 23, 4
"""Numbers at most, and probes at least, that a compiled ``contract`` keeps tangents of for its gradient; otherwise that
finds them again, which for one probe or two costs little."""


class Kernels(NamedTuple):
    """The compiled ``contract`` of a field, its gradient (of x, and of all parameters in a row), ``power_products``."""

    value: Op
    backward: Op
    powers: Op


@dataclass(frozen=True, eq=False)  # == of tensors is not a bool, and torch 2.11 hashes what it compiles
class Field:
    """A network whose derivatives ``fastgen.ops.hutchinson_trace`` knows; see ``DenseField`` and ``ConvField``."""

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    activation: str

    linear: ClassVar[LinearMap]
    plane: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            allowed = ", ".join(map(repr, ACTIVATIONS))
            raise ValueError(f"activation must be one of {allowed}, got {self.activation!r}")
        if len(self.weights) < 2 or len(self.biases) != len(self.weights):
            raise ValueError(
                "weights and biases must have equally many tensors, at least 2, got "
                f"{len(self.weights)} and {len(self.biases)}"
            )

    @property
    def has_closed_form(self) -> bool:
        """Whether the method ``trace`` finds the trace without a product."""
        return False

    def trace(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns f(x) and the trace [N] of its Jacobian, in closed form."""
        raise NotImplementedError(f"a {type(self).__name__} has no trace in closed form")

    def check(self, x: Tensor) -> None:
        """Raises ValueError unless x has the field's shape, and as many samples as the biases."""
        taken = f"[N, {self.weights[0].shape[1]}{self.plane}]"
        if x.dim() != self.weights[0].dim() or x.shape[1] != self.weights[0].shape[1]:
            raise ValueError(f"x must have shape {taken}, got {tuple(x.shape)}")
        for i, bias in enumerate(self.biases):
            if bias.dim() == x.dim() and bias.shape[0] != 1 and bias.shape[0] != x.shape[0]:
                raise ValueError(f"biases[{i}] must have 1 row or {x.shape[0]}, as x has samples, got {bias.shape[0]}")

    def __call__(self, x: Tensor) -> Tensor:
        self.check(x)
        parameters = [
            p if p.dtype == x.dtype else p.to(torch.promote_types(p.dtype, x.dtype)) for p in self._parameters(x)
        ]
        return reference.field(self.linear, self.activation, x, parameters)

    def has_gradient_alone(self, x: Tensor) -> bool:
        """Returns whether ``contract`` has a gradient of its own, or none is recorded."""
        return not is_transformed() and not (torch.is_grad_enabled() and self._kernels(x) is None)

    def contract(
        self, x: Tensor, left: Tensor, right: Tensor, known: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns f(x) and ``sum_p left_p^T (df/dx) right_p`` [N], for the constants left and right, [P, N or 1, D...].

        Differentiable in x and the parameters to any order; twice, within ``torch.func`` and under ``torch.compile`` by
        way of the plain formula.

        ``known``, where ``has_gradient_alone``, is returned in their place, with their gradient.
        """
        with without_autocast(x):
            x, left, right, *parameters = in_float32(x, left.detach(), right.detach(), *self._parameters(x))
            if is_transformed():
                return reference.field_trace(self.linear, self.activation, x, left, right, *parameters)
            if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters)):
                return _Trace.apply(self.linear, self.activation, self._kernels(x), known, x, left, right, *parameters)
            if known:
                return known
            with torch.no_grad():
                if kernels := self._kernels(x):
                    number = list(ACTIVATIONS).index(self.activation)
                    return kernels.value(number, False, x, left, right, parameters)[:2]
                return _value(self.linear, self.activation, x, left, right, parameters)

    @torch.no_grad()
    def products(self, x: Tensor, vectors: Tensor) -> Tensor:
        """Returns v^T (df/dx) of every v in [P, N or 1, D...]: [P, N, D...], without a gradient."""
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
            raise ValueError(f"vectors must have shape {shape} or [P, *{shape}] for x of {shape}, got {given}")
        if count < 0:
            raise ValueError(f"count must be at least 0, got {count}")
        return self._powers(x, vectors, count)

    def _powers(self, x: Tensor, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
        with without_autocast(x):
            x, vectors, *parameters = in_float32(x, vectors, *self._parameters(x))
            kernels = None if is_transformed() else self._kernels(x)
            if kernels:
                together = vectors if vectors.dim() > x.dim() else vectors[None]
                y, terms = kernels.powers(list(ACTIVATIONS).index(self.activation), count, x, together, parameters)
                return y, terms.view(count, *vectors.shape[: -x.dim()], *x.shape)
            parameters[::2] = [self.linear.for_pull(weight) for weight in parameters[::2]]
            return reference.field_powers(self.linear, self.activation, count, x, vectors, *parameters)

    def _kernels(self, x: Tensor) -> Kernels | None:
        """Returns the compiled kernels for layers of this size and x of this kind; None without."""
        return None

    def _parameters(self, x: Tensor) -> list[Tensor]:
        """Returns weight, bias, weight, bias, ..., as the plain formula takes them."""
        return [tensor for layer in zip(self.weights, self.biases, strict=True) for tensor in layer]


def is_transformed() -> bool:
    """Returns whether ``torch.compile`` or ``torch.func`` is active; both take the plain formula."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _blocks(x: Tensor, probes: int, weights: Sequence[Tensor], whole: bool) -> list[tuple[slice, slice]]:
    """Returns blocks of samples and probes that go through all layers together; ``whole``: all probes of a sample."""
    plane = math.prod(x.shape[2:])
    each = max(1, plane * max(len(weight) for weight in weights))
    most = max(1, _NUMBERS // each)
    samples, together = max(1, most // (probes + 1)), probes if whole else max(1, min(probes, most))
    parts = [slice(p, p + together) for p in range(0, probes, together)] if together else []
    return [(slice(n, n + samples), part) for n in range(0, max(1, len(x)), samples) for part in parts or [slice(0)]]


def _of(samples: slice, tensor: Tensor, dim: int = 0) -> Tensor:
    """Returns the rows of a block; a tensor shared by all samples is returned as it is."""
    return tensor if tensor.shape[dim] == 1 else tensor[(slice(None),) * dim + (samples,)]


def _arranged(linear: LinearMap, weights: Sequence[Tensor]) -> list[Tensor]:
    """Returns the weights laid out for ``_forward``: all but the last carry tangents forward, the last one back."""
    return [*map(linear.for_push, weights[:-1]), linear.for_pull(weights[-1])]


def _biases(parameters: Sequence[Tensor], samples: slice, x: Tensor) -> list[Tensor]:
    return [_of(samples, bias) if bias.dim() == x.dim() else bias for bias in parameters[1::2]]


class _Run(NamedTuple):
    """Results of a block's pass through the layers, for each activation except ``met``.

    The right vectors are carried forward to the last hidden layer, the left ones back to it: there they meet.
    """

    before: list[Tensor]
    values: list[Tensor]
    slopes: list[Tensor]
    tangents: list[Tensor]
    """The right vectors, before the activation's derivative scales them."""
    met: list[Tensor]
    """The left vectors at the last activation."""


def _forward(
    linear: LinearMap,
    activation: str,
    x: Tensor,
    left: Tensor,
    right: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    keep: bool,
) -> tuple[Tensor, Tensor, _Run]:
    run = _Run([], [], [], [], [])
    value, scaled = x, right
    for k, (weight, bias) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
        before, tangents = linear.push(value, weight, bias), linear.push(scaled, weight)
        last = k == len(weights) - 2
        value, slope, scaled = tangent_activation(activation, before, tangents[:0] if last else tangents)
        if keep:
            for kept, tensor in zip(run, (before, value, slope, tangents), strict=False):
                kept.append(tensor)
    met = linear.pull(left, weights[-1])
    run.met.append(met)
    trace = tangent_contraction(slope, tangents, met).flatten(1).sum(1)
    return linear.push(value, weights[-1], biases[-1]), trace, run


def _value(
    linear: LinearMap, activation: str, x: Tensor, left: Tensor, right: Tensor, parameters: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """``reference.field_trace`` with nothing kept."""
    weights = _arranged(linear, parameters[::2])
    y, trace = x.new_empty(x.shape), x.new_zeros(len(x))
    for samples, probes in _blocks(x, len(right), weights, whole=False):
        a, b = (_of(samples, vectors[probes], 1) for vectors in (left, right))
        biases = _biases(parameters, samples, x)
        y[samples], part, _ = _forward(linear, activation, x[samples], a, b, weights, biases, keep=False)
        trace[samples] += part
    return y, trace


class _Trace(torch.autograd.Function):
    """``reference.field_trace``, with the gradient written by hand."""

    @staticmethod
    def forward(
        ctx,
        linear: LinearMap,
        activation: str,
        kernels: Kernels | None,
        known: tuple[Tensor, Tensor] | None,
        x: Tensor,
        left: Tensor,
        right: Tensor,
        *parameters: Tensor,
    ):
        ctx.linear, ctx.activation, ctx.kernels = linear, activation, kernels
        if kernels:
            number = list(ACTIVATIONS).index(activation)
            numbers = len(x) * len(right) * len(parameters) // 2 * max(len(weight) for weight in parameters[:-2:2])
            keep = len(right) >= _WORTH_KEEPING and numbers <= _KEPT
            *found, kept = (
                (*known, x.new_empty(0)) if known else kernels.value(number, keep, x, left, right, list(parameters))
            )
            ctx.save_for_backward(x, left, right, *parameters, kept)
            return tuple(found)
        weights = _arranged(linear, parameters[::2])
        ys, traces, kept = [], [], []
        for samples, _ in _blocks(x, len(right), weights, whole=True):
            a, b = (_of(samples, vectors, 1) for vectors in (left, right))
            biases = _biases(parameters, samples, x)
            y, trace, run = _forward(linear, activation, x[samples], a, b, weights, biases, keep=True)
            ys.append(y)
            traces.append(trace)
            kept += [tensor for tensors in run for tensor in tensors]
        ctx.save_for_backward(x, left, right, *parameters, *kept)
        return torch.cat(ys), torch.cat(traces)

    @staticmethod
    def backward(ctx, grad_y: Tensor, grad_trace: Tensor):
        count = len(ctx.needs_input_grad) - 7
        saved = ctx.saved_tensors  # read once: checkpointing computes it anew, and hooks are called, at every read
        (x, left, right), parameters, kept = saved[:3], list(saved[3 : 3 + count]), saved[3 + count :]
        if torch.is_grad_enabled():
            found = _again(ctx.linear, ctx.activation, x, left, right, parameters, grad_y, grad_trace)
        elif ctx.kernels:
            number = list(ACTIVATIONS).index(ctx.activation)
            grad_x, grads = ctx.kernels.backward(number, grad_y, grad_trace, kept[0], x, left, right, parameters)
            each = grads.split([parameter.numel() for parameter in parameters])
            found = [grad_x, *(grad.view_as(tensor) for grad, tensor in zip(each, parameters, strict=True))]
        else:
            gradients = _Gradients(ctx.linear, ctx.activation, x, parameters, ctx.needs_input_grad)
            rest, hidden = iter(kept), count // 2 - 1
            for samples, _ in _blocks(x, len(right), parameters[::2], whole=True):
                run = _Run(*([next(rest) for _ in range(length)] for length in (*[hidden] * 4, 1)))
                a, b = (_of(samples, vectors, 1) for vectors in (left, right))
                gradients.add(samples, x[samples], a, b, run, grad_y[samples], grad_trace[samples])
            found = [
                gradients.x,
                *(grad for pair in zip(gradients.weights, gradients.biases, strict=True) for grad in pair),
            ]
        return None, None, None, None, found[0], None, None, *found[1:]


class _Gradients:
    """Gradients of x and the parameters, summed over blocks of samples; None where not needed."""

    def __init__(
        self, linear: LinearMap, activation: str, x: Tensor, parameters: list[Tensor], needed: Sequence[bool]
    ) -> None:
        self.linear, self.activation = linear, activation
        self.arranged = [linear.for_pull(weight) for weight in parameters[::2]]
        self.x = torch.empty_like(x) if needed[4] else None
        sums = [torch.zeros_like(p) if need else None for p, need in zip(parameters, needed[7:], strict=True)]
        self.weights, self.biases = sums[::2], sums[1::2]

    def add(
        self, samples: slice, x: Tensor, left: Tensor, right: Tensor, run: _Run, grad_y: Tensor, grad_trace: Tensor
    ) -> None:
        """Adds the gradients of a block; at each activation those of f and of the tangents' slopes are summed."""
        linear, each = self.linear, grad_trace.view(-1, *[1] * (x.dim() - 1))
        gradient, carried = linear.pull(grad_y, self.arranged[-1]), run.met[0] * each
        above, cotangents = grad_y, left * each
        for k in reversed(range(len(run.slopes))):
            self._add_bias(k + 1, samples, above)
            self._add_outer(k + 1, above[None], run.values[k][None])
            before, value, slope, tangents = (tensors[k] for tensors in run[:4])
            above, carried, scaled = tangent_activation_backward(
                self.activation, before, value, slope, tangents, gradient, carried
            )
            self._add_outer(k + 1, cotangents, scaled)
            cotangents = carried
            if k:
                gradient, carried = (linear.pull(v, self.arranged[k]) for v in (above, carried))
        self._add_bias(0, samples, above)
        self._add_outer(0, above[None], x[None])
        self._add_outer(0, cotangents, right)
        if self.x is not None:
            self.x[samples] = linear.pull(above, self.arranged[0])

    def _add_bias(self, k: int, samples: slice, gradient: Tensor) -> None:
        total = self.biases[k]
        if total is not None:
            part = _of(samples, total) if total.dim() == gradient.dim() else total
            part += gradient.sum_to_size(part.shape)

    def _add_outer(self, k: int, v: Tensor, h: Tensor) -> None:
        total = self.weights[k]
        if total is not None:
            if v.shape[1] != h.shape[1]:  # one of them is shared by the samples
                v, h = (t if t.shape[1] == 1 else t.sum(1, keepdim=True) for t in (v, h))
            total += self.linear.outer(v.flatten(0, 1), h.flatten(0, 1), self.arranged[k])


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
    """Returns the gradients by the plain formula, which can be differentiated again."""
    given = [x, *parameters]
    wanted = [i for i, tensor in enumerate(given) if tensor.requires_grad]
    outputs = reference.field_trace(linear, activation, x, left, right, *parameters)
    found = torch.autograd.grad(
        outputs, [given[i] for i in wanted], (grad_y, grad_trace), create_graph=True, materialize_grads=True
    )
    gradients = dict(zip(wanted, found, strict=True))
    return [gradients.get(i) for i in range(len(given))]
