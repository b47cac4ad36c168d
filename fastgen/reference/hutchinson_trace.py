"""The trace of a field's Jacobian from vector-Jacobian products, in plain PyTorch.

Hutchinson, "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines" (1989).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _softplus(a: Tensor) -> Tensor:
    return F.softplus(a, threshold=40.0)  # of float64; PyTorch's own, 20, is 2e-9 off


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "softplus": _softplus, "swish": F.silu}


def hutchinson_trace(f: Callable[[Tensor], Tensor], x: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """``f(x)`` and ``sum_p left_p^T (df/dx) right_p`` of every sample.

    With ``left = right = v`` and E[v v^T] = I each term has the trace as its mean; with the unit vectors the sum is it.

    Args:
        f: [N, D...] to [N, D...], sample by sample.
        x: [N, D...].
        left: [P, N, D...].
        right: [P, N, D...].
    """
    y, pull = torch.func.vjp(f, x)
    terms = [(pull(a)[0] * b).flatten(1).sum(1) for a, b in zip(left, right, strict=True)]
    return y, torch.stack(terms).sum(0) if terms else y.flatten(1).sum(1) * 0


def activate(name: str, a: Tensor) -> tuple[Tensor, Tensor]:
    """The activation and its derivative."""
    if name == "tanh":
        value = a.tanh()
        return value, 1 - value * value
    gate = a.sigmoid()
    if name == "softplus":
        return _softplus(a), gate
    return a * gate, gate * (1 + a * (1 - gate))


def curvature(name: str, a: Tensor) -> Tensor:
    """The second derivative of the activation."""
    if name == "tanh":
        value = a.tanh()
        return -2 * value * (1 - value * value)
    gate = a.sigmoid()
    of_gate = gate * (1 - gate)
    return of_gate if name == "softplus" else of_gate * (2 + a * (1 - 2 * gate))


def dense_field(activation: str, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Affine maps, x W^T + b with W [out, in], with the activation between them.

    Args:
        x: [N, D].
        parameters: weight, bias, weight, bias, ...
    """
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x = ACTIVATIONS[activation](F.linear(x, weight, bias))
    return F.linear(x, *parameters[-2:])


def dense_trace(activation: str, x: Tensor, left: Tensor, right: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    """``hutchinson_trace`` of the dense field, the right vectors carried through it beside x.

    Args:
        left: [P, N or 1, D].
        right: [P, N or 1, D].
    """
    tangent = right
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x, slope = activate(activation, F.linear(x, weight, bias))
        tangent = slope * (tangent @ weight.t())
    weight, bias = parameters[-2:]
    return F.linear(x, weight, bias), (left * (tangent @ weight.t())).sum((0, 2))


def dense_powers(activation: str, count: int, x: Tensor, vectors: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    """The dense field, and ``v^T J, v^T J^2, ..., v^T J^count`` of every v, for J its Jacobian.

    Args:
        count: how many powers, 0 or more.
        x: [N, D].
        vectors: [N, D] or [P, N, D].

    Returns:
        f(x), and the products stacked, [count, N, D] or [count, P, N, D].
    """
    slopes = []
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x, slope = activate(activation, F.linear(x, weight, bias))
        slopes.append(slope)
    powers, carried = vectors.new_empty(count, *vectors.shape), vectors
    for power in powers:
        carried = carried @ parameters[-2]
        for slope, weight in zip(reversed(slopes), reversed(parameters[:-2:2]), strict=True):
            carried = (carried * slope) @ weight
        power.copy_(carried)
    return F.linear(x, *parameters[-2:]), powers
