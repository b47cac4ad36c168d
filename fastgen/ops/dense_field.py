"""Fields of dense layers: f(x), and the Jacobian between many pairs of vectors in one pass over each layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen.ops.precision import in_float32
from fastgen.ops.registry import Op
from fastgen.reference import hutchinson_trace as reference
from fastgen.reference.hutchinson_trace import ACTIVATIONS, activate, curvature

_ROWS = 4096
"""Of the matrices of tangents that are multiplied at once: they stay in the cache from one layer to the next."""

_WIDEST = 256
"""Layers up to this wide fit the cache, and go through the compiled kernel; PyTorch's products are better at others."""


def _reference(activation: int, x: Tensor, left: Tensor, right: Tensor, parameters: list[Tensor]):
    return reference.dense_trace(list(ACTIVATIONS)[activation], x, left, right, *parameters)


def _fake(activation: int, x: Tensor, left: Tensor, right: Tensor, parameters: list[Tensor]):
    return x.new_empty(x.shape), x.new_empty(x.shape[:1])


VALUE = Op(
    "dense_trace(int activation, Tensor x, Tensor left, Tensor right, Tensor[] parameters) -> (Tensor, Tensor)",
    _reference,
    _fake,
    absent={
        "triton": "its products are cuBLAS's; of the 9 + 4 P numbers that a layer (tanh, P probes) moves for each unit "
        "and sample, a kernel between them would spare 5: one multiplication has all probes already"
    },
    not_differentiable="where a gradient is wanted, _Trace has it",
    part_of="hutchinson_trace",
)


def _backward_reference(
    activation: int,
    grad_y: Tensor,
    grad_trace: Tensor,
    x: Tensor,
    left: Tensor,
    right: Tensor,
    parameters: list[Tensor],
):
    outputs, pull = torch.func.vjp(lambda x, *p: _reference(activation, x, left, right, p), x, *parameters)
    grad_x, *grads = pull((grad_y.view_as(outputs[0]), grad_trace))
    return grad_x, torch.cat([grad.flatten() for grad in grads])


def _fake_backward(
    activation: int,
    grad_y: Tensor,
    grad_trace: Tensor,
    x: Tensor,
    left: Tensor,
    right: Tensor,
    parameters: list[Tensor],
):
    return x.new_empty(x.shape), x.new_empty(sum(p.numel() for p in parameters))


BACKWARD = Op(
    "dense_trace_backward(int activation, Tensor grad_y, Tensor grad_trace, Tensor x, Tensor left, Tensor right, "
    "Tensor[] parameters) -> (Tensor, Tensor)",
    _backward_reference,
    _fake_backward,
    absent=VALUE.absent,
    not_differentiable="its derivative is that of the plain formula, in _Trace",
    part_of="hutchinson_trace",
)
"""The gradients of x, and of all parameters one after the other."""


@dataclass(frozen=True)
class DenseField:
    """x [N, D] to [N, D] through affine maps with an activation between them, at least one.

    ``fastgen.ops.hutchinson_trace`` knows its derivatives: the probes go through a layer in one matrix product, and the
    gradients are written by hand. ``fastgen.nn.MLPField`` makes one of its layers, at a time.

    Args:
        weights: [out, in] of each layer; the first takes D, the last gives D.
        biases: [out] of each layer.
        activation: "tanh", "softplus" or "swish" (x sigmoid(x)).

    Raises:
        ValueError: an unknown activation, fewer than two layers, shapes that do not follow one another.

    Example:
        >>> field = DenseField([torch.randn(8, 2), torch.randn(2, 8)], [torch.zeros(8), torch.zeros(2)], "tanh")
        >>> field(torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    activation: str

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            allowed = ", ".join(map(repr, ACTIVATIONS))
            raise ValueError(f"activation is {self.activation!r}; it must be one of {allowed}")
        if len(self.weights) < 2 or len(self.biases) != len(self.weights):
            raise ValueError(
                f"weights has {len(self.weights)} and biases {len(self.biases)} tensors; they must have equally many, "
                "at least 2"
            )
        width = self.features
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if weight.dim() != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
                raise ValueError(
                    f"weights[{i}] has shape {tuple(weight.shape)} and biases[{i}] {tuple(bias.shape)}; they must be "
                    f"[out, {width}] and [out]"
                )
            width = weight.shape[0]
        if width != self.features:
            raise ValueError(f"the last of weights gives {width} numbers; it must give {self.features}, as x has")

    @property
    def features(self) -> int:
        """D."""
        return self.weights[0].shape[-1]

    @property
    def has_closed_form(self) -> bool:
        """Whether the trace is a form of the activations' derivatives: with one hidden layer or two."""
        return len(self.weights) <= 3

    def __call__(self, x: Tensor) -> Tensor:
        return reference.dense_field(self.activation, x, self._parameters())

    def trace(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) and the trace of its Jacobian in closed form, for one hidden layer or two.

        With s_k the derivatives of the activations, and * element by element::

            one:  s_1 . diag(W_1 W_2)        two:  s_2^T (W_2 * (W_1 W_3)^T) s_1
        """
        x, *parameters = in_float32(x, *self._parameters())
        with torch.autocast(x.device.type, enabled=False):
            weights, biases = parameters[::2], parameters[1::2]
            slopes = []
            for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                x, slope = activate(self.activation, torch.addmm(bias, x, weight.t()))
                slopes.append(slope)
            y = torch.addmm(biases[-1], x, weights[-1].t())
            if len(weights) == 2:
                return y, slopes[0] @ (weights[0] * weights[1].t()).sum(1)
            form = weights[1] * (weights[0] @ weights[2]).t()
            return y, ((slopes[0] @ form.t()) * slopes[1]).sum(1)

    def contract(self, x: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) and ``sum_p left_p^T (df/dx) right_p`` [N], for left and right of [P, N or 1, D], which are constants.

        Differentiable in x and the parameters to any order; twice, within ``torch.func`` and under ``torch.compile`` by
        way of the plain formula.
        """
        x, left, right, *parameters = in_float32(x, left.detach(), right.detach(), *self._parameters())
        with torch.autocast(x.device.type, enabled=False):
            if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
                return reference.dense_trace(self.activation, x, left, right, *parameters)
            if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters)):
                return _Trace.apply(self.activation, self._fits_kernel(x), x, left, right, *parameters)
            with torch.no_grad():
                if self._fits_kernel(x):
                    return VALUE(list(ACTIVATIONS).index(self.activation), x, left, right, parameters)
                return _Forward(self.activation, x, left, right, parameters, keep=False).result

    @torch.no_grad()
    def products(self, x: Tensor, vectors: Tensor) -> Tensor:
        """v^T (df/dx) of every v in [P, N or 1, D]: [P, N, D], without a gradient."""
        x, carried, *parameters = in_float32(x, vectors, *self._parameters())
        with torch.autocast(x.device.type, enabled=False):
            slopes = []
            for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
                x, slope = activate(self.activation, torch.addmm(bias, x, weight.t()))
                slopes.append(slope)
            carried = carried @ parameters[-2]
            for slope, weight in zip(reversed(slopes), reversed(parameters[:-2:2]), strict=True):
                carried = (carried * slope) @ weight
            return carried

    @torch.no_grad()
    def power_products(self, x: Tensor, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """f(x) and the power series' terms ``v^T J, v^T J^2, ..., v^T J^count`` with J = df/dx, without a gradient.

        The activations' derivatives are computed once for all of them. ``vectors`` is [N, D], or [P, N, D] for several
        v of a sample; the terms are stacked, [count, N, D] or [count, P, N, D].

        Raises:
            ValueError: vectors of another shape, or a negative count.
        """
        if vectors.shape[-2:] != x.shape or vectors.dim() > 3:
            shape = tuple(x.shape)
            raise ValueError(
                f"vectors has shape {tuple(vectors.shape)}; for x of {shape} it must be {shape} or [P, N, D]"
            )
        if count < 0:
            raise ValueError(f"count is {count}; it must be at least 0")
        x, vectors, *parameters = in_float32(x, vectors, *self._parameters())
        with torch.autocast(x.device.type, enabled=False):
            return reference.dense_powers(self.activation, count, x, vectors, *parameters)

    def _fits_kernel(self, x: Tensor) -> bool:
        small = max(max(weight.shape) for weight in self.weights) <= _WIDEST
        return small and VALUE.refusal("cpu", x.device.type) is None

    def _parameters(self) -> list[Tensor]:
        return [tensor for layer in zip(self.weights, self.biases, strict=True) for tensor in layer]


def _chunks(probes: int, samples: int) -> Iterator[slice]:
    step = max(1, _ROWS // max(1, samples))
    return (slice(begin, begin + step) for begin in range(0, probes, step))


class _Forward:
    """What ``_Trace`` computes, and what its backward needs of it.

    The right vectors are carried forward to the last hidden layer, the left ones back to it: there they meet. ``moved``
    has the right vectors before each activation's derivative, ``met`` the left ones.
    """

    def __init__(
        self, activation: str, x: Tensor, left: Tensor, right: Tensor, parameters: Sequence[Tensor], keep: bool
    ) -> None:
        weights, biases = parameters[::2], parameters[1::2]
        self.linear, self.hidden, slopes = [], [x], []
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            self.linear.append(torch.addmm(bias, self.hidden[-1], weight.t()))
            value, slope = activate(activation, self.linear[-1])
            self.hidden.append(value)
            slopes.append(slope)
        y = torch.addmm(biases[-1], self.hidden[-1], weights[-1].t())
        self.slopes = slopes
        self.moved: list[list[Tensor]] = []
        self.met: list[Tensor] = []
        across = [weight.t().contiguous() for weight in weights[:-1]]  # products with a transpose are slower
        total = torch.zeros_like(slopes[-1])
        for chunk in _chunks(len(right), len(x)):
            moved = [right[chunk] @ across[0]]
            for slope, weight in zip(slopes[:-1], across[1:], strict=True):
                last = moved[-1]
                scaled = last * slope if keep or last.shape[1] != len(x) else last.mul_(slope)
                moved = [*moved, scaled @ weight] if keep else [scaled @ weight]
            met = left[chunk] @ weights[-1]
            total += (moved[-1] * met).sum(0)
            if keep:
                self.moved.append(moved)
                self.met.append(met)
        self.result = y, (total * slopes[-1]).sum(1)


def _add_outer(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out += sum a^T b`` over the probes and samples; one of them may be shared by the samples."""
    if a.shape[1] != b.shape[1]:
        a, b = (t if t.shape[1] == 1 else t.sum(1, keepdim=True) for t in (a, b))
    out.addmm_(a.flatten(0, 1).t(), b.flatten(0, 1))


class _Trace(torch.autograd.Function):
    """``reference.dense_trace``, with the gradient written by hand."""

    @staticmethod
    def forward(ctx, activation: str, compiled: bool, x: Tensor, left: Tensor, right: Tensor, *parameters: Tensor):
        ctx.activation, ctx.compiled = activation, compiled
        if compiled:
            ctx.save_for_backward(x, left, right, *parameters)
            return VALUE(list(ACTIVATIONS).index(activation), x, left, right, list(parameters))
        ran = _Forward(activation, x, left, right, parameters, keep=True)
        moved = [tensor for chunk in ran.moved for tensor in chunk]
        ctx.save_for_backward(x, left, right, *parameters, *ran.linear, *ran.hidden[1:], *ran.slopes, *ran.met, *moved)
        ctx.chunks = len(ran.met)
        return ran.result

    @staticmethod
    def backward(ctx, grad_y: Tensor, grad_trace: Tensor):
        layers = (len(ctx.needs_input_grad) - 5) // 2
        tensors = iter(ctx.saved_tensors)

        def take(count: int) -> list[Tensor]:
            return [next(tensors) for _ in range(count)]

        x, left, right = take(3)
        parameters = take(2 * layers)
        if torch.is_grad_enabled():
            return None, None, *_again(ctx.activation, x, left, right, parameters, grad_y, grad_trace)
        if ctx.compiled:
            number = list(ACTIVATIONS).index(ctx.activation)
            grad_x, grads = BACKWARD(number, grad_y, grad_trace, x, left, right, parameters)
            each = grads.split([parameter.numel() for parameter in parameters])
            shaped = [grad.view_as(parameter) for grad, parameter in zip(each, parameters, strict=True)]
            return None, None, grad_x, None, None, *shaped
        weights = parameters[::2]
        linear, after, slopes = (take(layers - 1) for _ in range(3))
        hidden = [x, *after]
        met = take(ctx.chunks)
        trained = any(ctx.needs_input_grad[5:])
        grad_weights = [torch.zeros_like(weight) for weight in weights]
        grad_slopes = [torch.zeros_like(slope) for slope in slopes]
        each = grad_trace[:, None]
        for chunk, here in zip(_chunks(len(right), len(x)), met, strict=True):
            moved = take(layers - 1)
            carried = here * each
            if trained:
                _add_outer(grad_weights[-1], left[chunk], moved[-1] * (slopes[-1] * each))
            for k in reversed(range(layers - 1)):
                grad_slopes[k] += (moved[k] * carried).sum(0)
                carried = carried.mul_(slopes[k]) if carried.shape[1] == len(x) else carried * slopes[k]
                if trained:
                    _add_outer(grad_weights[k], carried, moved[k - 1] * slopes[k - 1] if k else right[chunk])
                if k:
                    carried = carried @ weights[k]
        gradient, grad_biases = grad_y, []
        for k in reversed(range(layers)):
            grad_weights[k].addmm_(gradient.t(), hidden[k])
            grad_biases.append(gradient.sum(0))
            gradient = gradient @ weights[k]
            if k:
                bend = curvature(ctx.activation, linear[k - 1])
                gradient = (gradient * slopes[k - 1]).addcmul_(grad_slopes[k - 1], bend)
        paired = zip(grad_weights, reversed(grad_biases), strict=True)
        return None, None, gradient, None, None, *[g for pair in paired for g in pair]


def _again(
    activation: str,
    x: Tensor,
    left: Tensor,
    right: Tensor,
    parameters: list[Tensor],
    grad_y: Tensor,
    grad_trace: Tensor,
) -> tuple[Tensor | None, ...]:
    """The gradients by way of the plain formula, which can be differentiated again."""
    given = [x, *parameters]
    wanted = [i for i, tensor in enumerate(given) if tensor.requires_grad]
    outputs = reference.dense_trace(activation, x, left, right, *parameters)
    found = torch.autograd.grad(
        outputs, [given[i] for i in wanted], (grad_y, grad_trace), create_graph=True, materialize_grads=True
    )
    gradients = dict(zip(wanted, found, strict=True))
    return gradients.get(0), None, None, *[gradients.get(i) for i in range(1, len(given))]
