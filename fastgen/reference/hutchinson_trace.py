"""The trace of a field's Jacobian from vector-Jacobian products, in plain PyTorch.

Hutchinson, "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines" (1989).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def _softplus(a: Tensor) -> Tensor:
    return F.softplus(a, threshold=40.0)  # of float64; PyTorch's own, 20, is 2e-9 off


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "softplus": _softplus,
    "swish": F.silu,
    "elu": F.elu,
}


def hutchinson_trace(f: Callable[[Tensor], Tensor], x: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``f(x)`` and ``sum_p left_p^T (df/dx) right_p`` of every sample.

    With ``left = right = v`` and E[v v^T] = I each term has the trace as its mean; with the unit vectors the sum is it.

    Args:
        f: [N, D...] to [N, D...], sample by sample.
        x: [N, D...].
        left: [P, N, D...].
        right: [P, N, D...].
    """
    y, pull = torch.func.vjp(f, x)[:2]
    terms = [(pull(a)[0] * b).flatten(1).sum(1) for a, b in zip(left, right, strict=True)]
    return y, torch.stack(terms).sum(0) if terms else y.flatten(1).sum(1) * 0


def activate(name: str, a: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the activation and its derivative."""
    if name == "tanh":
        value = a.tanh()
        return value, 1 - value * value
    if name == "elu":
        return F.elu(a), a.clamp(max=0).exp()
    gate = a.sigmoid()
    if name == "softplus":
        return _softplus(a), gate
    return a * gate, gate * (1 + a * (1 - gate))


def curvature(name: str, a: Tensor) -> Tensor:
    """Returns the second derivative of the activation."""
    if name == "tanh":
        value = a.tanh()
        return -2 * value * (1 - value * value)
    if name == "elu":
        return torch.where(a > 0, 0, a.clamp(max=0).exp())
    gate = a.sigmoid()
    of_gate = gate * (1 - gate)
    return of_gate if name == "softplus" else of_gate * (2 + a * (1 - 2 * gate))


class LinearMap(NamedTuple):
    """The linear maps between the activations of a field."""

    push: Callable[..., Tensor]
    """W x, plus a bias where one is given; x may have more dimensions in front."""
    pull: Callable[[Tensor, Tensor], Tensor]
    """W^T v."""
    outer: Callable[[Tensor, Tensor, Tensor], Tensor]
    """The gradient of W, sum v x^T, of v [N, out...] and x [N, in...]."""
    for_push: Callable[[Tensor], Tensor]
    """W in the memory layout in which ``push`` is fastest."""
    for_pull: Callable[[Tensor], Tensor]
    """The same for ``pull``."""


def _dense_push(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())


DENSE = LinearMap(
    _dense_push,
    lambda v, weight: v @ weight,
    lambda v, x, weight: v.t() @ x,
    lambda weight: weight.t().contiguous().t(),
    lambda weight: weight.contiguous(),
)
"""W [out, in]; a bias [out], or [N, out]."""


def _padding(weight: Tensor) -> tuple[int, int]:
    return weight.shape[2] // 2, weight.shape[3] // 2


def _images(x: Tensor) -> Tensor:
    """Returns [..., C, H, W] as [N, C, H, W], with the channels last in memory."""
    return _channels_last(x.flatten(0, -4))


def _channels_last(x: Tensor) -> Tensor:
    """Returns x with the channels last in memory; x itself under ``torch.func``, whose vmap has no such layout."""
    if torch._C._are_functorch_transforms_active():
        return x
    return x.contiguous(memory_format=torch.channels_last)


def _conv_push(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    shared = bias.flatten() if bias is not None and bias.dim() < 4 else None
    y = F.conv2d(_images(x), weight, shared, padding=_padding(weight))
    return (y if bias is None or shared is not None else y + bias).unflatten(0, x.shape[:-3])


def _conv_pull(v: Tensor, weight: Tensor) -> Tensor:
    return F.conv_transpose2d(_images(v), weight, padding=_padding(weight)).unflatten(0, v.shape[:-3])


def _conv_outer(v: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    where = (None, (1, 1), _padding(weight), (1, 1), False, (0, 0), 1)
    return torch.ops.aten.convolution_backward(v, x, weight, *where, (False, True, False))[1]


CONV = LinearMap(_conv_push, _conv_pull, _conv_outer, _channels_last, _channels_last)
"""Convolutions, W [out, in, kh, kw] with odd kh and kw, zeros around the image; a bias
of [out, 1, 1], or of what broadcasts to [N, out, H, W]."""


def field(linear: LinearMap, activation: str, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Linear maps with a bias, and the activation between them.

    Args:
        linear: ``DENSE`` or ``CONV``.
        activation: a key of ``ACTIVATIONS``.
        x: [N, D] of dense maps, [N, C, H, W] of convolutions.
        parameters: weight, bias, weight, bias, ...
    """
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x = ACTIVATIONS[activation](linear.push(x, weight, bias))
    return linear.push(x, *parameters[-2:])


def field_trace(
    linear: LinearMap, activation: str, x: Tensor, left: Tensor, right: Tensor, *parameters: Tensor
) -> tuple[Tensor, Tensor]:
    """``hutchinson_trace`` of the field, the right vectors carried through it beside x.

    Args:
        left: [P, N or 1, D...].
        right: [P, N or 1, D...].
    """
    tangent = right
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x, slope = activate(activation, linear.push(x, weight, bias))
        tangent = slope * linear.push(tangent, weight)
    weight, bias = parameters[-2:]
    return linear.push(x, weight, bias), (left * linear.push(tangent, weight)).flatten(2).sum((0, 2))


def field_powers(
    linear: LinearMap, activation: str, count: int, x: Tensor, vectors: Tensor, *parameters: Tensor
) -> tuple[Tensor, Tensor]:
    """The field, and ``v^T J, v^T J^2, ..., v^T J^count`` of every v, for J its Jacobian.

    Args:
        count: how many powers, 0 or more.
        vectors: [N, D...] or [P, N or 1, D...].

    Returns:
        f(x), and the products stacked, [count, N, D...] or [count, P, N, D...].
    """
    shape = (*vectors.shape[: -x.dim()], *x.shape)
    slopes, powers, carried = [], [], vectors
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x, slope = activate(activation, linear.push(x, weight, bias))
        slopes.append(slope)
    for _ in range(count):
        carried = linear.pull(carried, parameters[-2])
        for slope, weight in zip(reversed(slopes), reversed(parameters[:-2:2]), strict=True):
            carried = linear.pull(carried * slope, weight)
        powers.append(carried)
    return linear.push(x, *parameters[-2:]), torch.stack(powers) if powers else vectors.new_empty(0, *shape)
