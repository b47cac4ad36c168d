"""An activation of values and tangents in one pass over memory, its gradients, and the contraction of tangents."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from fastgen.ops.registry import Op
from fastgen.reference.hutchinson_trace import ACTIVATIONS, activate, curvature


def _reference(activation: int, a: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value, slope = activate(list(ACTIVATIONS)[activation], a)
    return value, slope, tangents * slope


def _fake(activation: int, a: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape), a.new_empty(a.shape), a.new_empty(tangents.shape[0], *a.shape)


FORWARD = Op(
    "tangent_activation(int activation, Tensor a, Tensor tangents) -> (Tensor, Tensor, Tensor)",
    _reference,
    _fake,
    absent={
        "triton": "where a gradient is recorded its neighbours are cuBLAS's and cuDNN's; PyTorch's own compiler fuses "
        "the plain formula around them"
    },
    not_differentiable="where a gradient is wanted, Field has it",
    part_of="hutchinson_trace",
)


def _backward_reference(
    activation: int, a: Tensor, value: Tensor, slope: Tensor, tangents: Tensor, gradient: Tensor, carried: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    bend = curvature(list(ACTIVATIONS)[activation], a)
    return gradient * slope + (tangents * carried).sum(0) * bend, carried * slope, tangents * slope


def _backward_fake(
    activation: int, a: Tensor, value: Tensor, slope: Tensor, tangents: Tensor, gradient: Tensor, carried: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape), a.new_empty(carried.shape), a.new_empty(carried.shape)


BACKWARD = Op(
    "tangent_activation_backward(int activation, Tensor a, Tensor value, Tensor slope, Tensor tangents, "
    "Tensor gradient, Tensor carried) -> (Tensor, Tensor, Tensor)",
    _backward_reference,
    _backward_fake,
    absent=FORWARD.absent,
    not_differentiable="its derivative is that of the plain formula, in Field",
    part_of="hutchinson_trace",
)


CONTRACTION = Op(
    "tangent_contraction(Tensor slope, Tensor tangents, Tensor met) -> Tensor",
    lambda slope, tangents, met: slope * (tangents * met).sum(0),
    lambda slope, tangents, met: slope.new_empty(slope.shape),
    absent=FORWARD.absent,
    not_differentiable=FORWARD.not_differentiable,
    part_of="hutchinson_trace",
)


def tangent_activation(name: str, a: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the activation of a [N, D...], its derivative, and that times the tangents [P, N or 1, D...]."""
    value, slope, scaled = _in_order(_of(FORWARD, name), a, tangents)
    return value, slope, scaled


def tangent_activation_backward(
    name: str, a: Tensor, value: Tensor, slope: Tensor, tangents: Tensor, gradient: Tensor, carried: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns gradients from those of the value, ``gradient``, and of the scaled tangents, ``carried`` [P, N, D...].

    Returns:
        the gradient of a, that of the tangents [P, N, D...], and the scaled tangents again.
    """
    above, below, scaled = _in_order(_of(BACKWARD, name), a, value, slope, tangents, gradient, carried)
    return above, below, scaled


def tangent_contraction(slope: Tensor, tangents: Tensor, met: Tensor) -> Tensor:
    """Returns ``slope sum_p tangents_p met_p`` [N, D...], of slope [N, D...], tangents and met [P, N or 1, D...]."""
    (found,) = _in_order(lambda *tensors: (CONTRACTION(*tensors),), slope, tangents, met)
    return found


def _of(op: Op, name: str) -> Callable[..., tuple[Tensor, ...]]:
    return functools.partial(op, list(ACTIVATIONS).index(name))


def _in_order(op: Callable[..., tuple[Tensor, ...]], a: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Calls ``op`` with the channels of images last, as they are in memory."""
    tensors = [a, *others]
    images = a.dim() == 4
    if images:
        tensors = [t.movedim(-3, -1) for t in tensors]
    found = op(*tensors)
    return tuple(t.movedim(-1, -3) for t in found) if images else found
