"""Fields of dense layers: one compiled kernel for small layers, PyTorch's products for large ones."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen.ops.field import Field, Kernels
from fastgen.ops.precision import in_float32, without_autocast
from fastgen.ops.registry import Op
from fastgen.reference import hutchinson_trace as reference
from fastgen.reference.hutchinson_trace import ACTIVATIONS, DENSE, activate

_PADDING = 16
_WIDEST = 256
"""Widest layer for the compiled kernel; wider ones do not fit the cache, and PyTorch's products are faster."""


def _value(activation: int, x: Tensor, left: Tensor, right: Tensor, parameters: list[Tensor]):
    return reference.field_trace(DENSE, list(ACTIVATIONS)[activation], x, left, right, *parameters)


def _kept(keep: bool, x: Tensor, left: Tensor, parameters: list[Tensor]) -> Tensor:
    """Zeros: [N, layers, P, columns], the columns padded for any vectors; in the kernel's own order."""
    columns = -(-max(len(weight) for weight in parameters[:-2:2]) // _PADDING) * _PADDING
    return x.new_zeros(x.shape[0] if keep else 0, len(parameters) // 2, left.shape[0], columns)


def _reference(activation: int, keep: bool, x: Tensor, left: Tensor, right: Tensor, parameters: list[Tensor]):
    return *_value(activation, x, left, right, parameters), _kept(keep, x, left, parameters)


def _fake(activation: int, keep: bool, x: Tensor, left: Tensor, right: Tensor, parameters: list[Tensor]):
    return x.new_empty(x.shape), x.new_empty(x.shape[:1]), _kept(keep, x, left, parameters)


VALUE = Op(
    "dense_trace(int activation, bool keep, Tensor x, Tensor left, Tensor right, Tensor[] parameters)"
    " -> (Tensor, Tensor, Tensor)",
    _reference,
    _fake,
    absent={
        "triton": "its products are cuBLAS's; of the 9 + 4 P numbers that a layer (tanh, P probes) moves for each unit "
        "and sample, a kernel between them would spare 5: one multiplication has all probes already"
    },
    not_differentiable="where a gradient is wanted, _Trace has it",
    part_of="hutchinson_trace",
)
"""Returns f(x), the trace, and on request the tangents at each layer, which the backward then need not recompute."""


def _backward_reference(
    activation: int,
    grad_y: Tensor,
    grad_trace: Tensor,
    kept: Tensor,
    x: Tensor,
    left: Tensor,
    right: Tensor,
    parameters: list[Tensor],
):
    outputs, pull = torch.func.vjp(lambda x, *p: _value(activation, x, left, right, list(p)), x, *parameters)[:2]
    grad_x, *grads = pull((grad_y.view_as(outputs[0]), grad_trace))
    return grad_x, torch.cat([grad.flatten() for grad in grads])


def _fake_backward(
    activation: int,
    grad_y: Tensor,
    grad_trace: Tensor,
    kept: Tensor,
    x: Tensor,
    left: Tensor,
    right: Tensor,
    parameters: list[Tensor],
):
    return x.new_empty(x.shape), x.new_empty(sum(p.numel() for p in parameters))


BACKWARD = Op(
    "dense_trace_backward(int activation, Tensor grad_y, Tensor grad_trace, Tensor kept, Tensor x, Tensor left, "
    "Tensor right, Tensor[] parameters) -> (Tensor, Tensor)",
    _backward_reference,
    _fake_backward,
    absent=VALUE.absent,
    not_differentiable="its derivative is that of the plain formula, in _Trace",
    part_of="hutchinson_trace",
)
"""Returns the gradients of x and of all parameters, flattened one after the other; ``kept`` may be empty."""


def _powers_reference(activation: int, count: int, x: Tensor, vectors: Tensor, parameters: list[Tensor]):
    return reference.field_powers(DENSE, list(ACTIVATIONS)[activation], count, x, vectors, *parameters)


def _fake_powers(activation: int, count: int, x: Tensor, vectors: Tensor, parameters: list[Tensor]):
    return x.new_empty(x.shape), x.new_empty(count, vectors.shape[0], *x.shape)


POWERS = Op(
    "dense_powers(int activation, int count, Tensor x, Tensor vectors, Tensor[] parameters) -> (Tensor, Tensor)",
    _powers_reference,
    _fake_powers,
    absent=VALUE.absent,
    not_differentiable="its results are constants: what they are used for is the gradient itself",
    part_of="hutchinson_trace",
)

_KERNELS = Kernels(VALUE, BACKWARD, POWERS)


@functools.cache
def _compiled(device: str) -> bool:
    return all(op.refusal("cpu", device) is None for op in _KERNELS)


@dataclass(frozen=True, eq=False)
class DenseField(Field):
    """A field that maps x [N, D] to [N, D] by at least two affine maps with an activation between them.

    ``fastgen.ops.hutchinson_trace`` knows its derivatives: the probes go through a layer in one matrix product, and the
    gradients are written by hand. ``fastgen.nn.MLPField`` makes one of its layers, at a time.

    Args:
        weights: [out, in] of each layer; the first takes D, the last gives D.
        biases: [out] of each layer, or [N, out] where each sample has its own, as of a context.
        activation: "tanh", "softplus", "swish" (x sigmoid(x)) or "elu".

    Raises:
        ValueError: an unknown activation, fewer than two layers, shapes that do not follow one another.

    Example:
        >>> field = DenseField([torch.randn(8, 2), torch.randn(2, 8)], [torch.zeros(8), torch.zeros(2)], "tanh")
        >>> field(torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    linear = DENSE

    def __post_init__(self) -> None:
        super().__post_init__()
        width = features = self.weights[0].shape[-1]
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            fits = bias.dim() in (1, 2) and bias.shape[-1] == weight.shape[0]
            if weight.dim() != 2 or weight.shape[1] != width or not fits:
                raise ValueError(
                    f"weights[{i}] and biases[{i}] must have shapes [out, {width}] and [out] or [N, out], got "
                    f"{tuple(weight.shape)} and {tuple(bias.shape)}"
                )
            width = weight.shape[0]
        if width != features:
            raise ValueError(f"the last of weights must have {features} outputs, as x has features, got {width}")

    @property
    def has_closed_form(self) -> bool:
        """Whether the trace has a closed form in the activations' derivatives: with one or two hidden layers."""
        return len(self.weights) <= 3

    def trace(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns f(x) and the trace of its Jacobian in closed form, for one or two hidden layers.

        With s_k the derivatives of the activations, and * element by element::

            one:  s_1 . diag(W_1 W_2)        two:  s_2^T (W_2 * (W_1 W_3)^T) s_1
        """
        x, *parameters = in_float32(x, *self._parameters(x))
        with without_autocast(x):
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

    def _kernels(self, x: Tensor) -> Kernels | None:
        small = max(max(weight.shape) for weight in self.weights) <= _WIDEST
        fit = small and all(bias.dim() == 1 or bias.shape[0] == x.shape[0] for bias in self.biases)
        return _KERNELS if fit and _compiled(x.device.type) else None
