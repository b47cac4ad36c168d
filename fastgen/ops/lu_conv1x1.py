"""The LU-parameterised invertible 1x1 convolution with actnorm folded in: forward, inverse, log-determinant."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.ops.arguments import check_device, has_numbers
from fastgen.ops.autograd import backward_of, differentiable, loop
from fastgen.ops.precision import in_float32, without_autocast
from fastgen.ops.registry import Op
from fastgen.reference import lu_conv1x1 as reference

_ARGUMENTS = "Tensor y, Tensor permutation, Tensor lower, Tensor upper, Tensor diagonal, Tensor bias"


def _fake(y: Tensor, *_) -> Tensor:
    return y.new_empty(y.shape)


def _fake_backward(
    grad: Tensor, y: Tensor, permutation: Tensor, lower: Tensor, upper: Tensor, diagonal: Tensor, bias: Tensor
) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (y, lower, upper, diagonal, bias))


def _backward(grad: Tensor, *arguments: Tensor) -> tuple[Tensor, ...]:
    with without_autocast(grad):
        return backward_of(reference.solve, 1)(grad, *arguments)


# the inverse; forward is a matrix product, whose kernel is the library's
OP = Op(f"lu_conv1x1({_ARGUMENTS}) -> Tensor", reference.solve, _fake)
BACKWARD = Op(
    f"lu_conv1x1_backward(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
    part_of="lu_conv1x1",
)
_solve = differentiable(OP, BACKWARD, loop)


def lu_conv1x1(
    x: Tensor,
    permutation: Tensor,
    lower: Tensor,
    upper: Tensor,
    log_s: Tensor,
    sign: Tensor,
    bias: Tensor | None = None,
    log_scale: Tensor | None = None,
    *,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Invertible 1x1 convolution given by its LU factors, after an actnorm, with its log-determinant.

    With P, L and U from ``permutation``, ``lower`` and ``upper``, at every one of the H W positions::

        y = P L (U + diag(sign exp(log_s))) (exp(log_scale) (x + bias))
        log |det| = H W sum(log_s + log_scale)

    Forward is one matrix product, of x with the product of all factors. The inverse is two triangular solves in one
    pass over memory; no inverse matrix is formed. On the CPU it is bitwise the same for any number of threads.

    Args:
        x: float [N, C, ...] or [N, C]. float16 and bfloat16 are computed in float32 (autocast included).
        permutation: int64 [C]; row i of P has its 1 at ``permutation[i]``. ``torch.linalg.lu`` gives P itself:
            ``P.argmax(1)``.
        lower: [C, C]; its part below the diagonal is L's, whose diagonal is 1.
        upper: [C, C]; its part above the diagonal is U's.
        log_s, sign: [C]: logarithm of the magnitude, and sign, of the diagonal.
        bias, log_scale: [C], of the actnorm; None is 0.
        inverse: y to x, with the log-determinant of that.

    Returns:
        y [N, C, ...] of x's dtype, and log |det dy/dx| [N], float32 for inputs of 32 bits or fewer, else float64.

    Raises:
        TypeError: a tensor that is not floating point, a permutation that is not int64.
        ValueError: shapes that do not fit, tensors on two devices; on the CPU, a permutation that is none; on a GPU,
            from the inverse, 2**31 elements a sample.

    Reference: Kingma, Dhariwal, "Glow: generative flow with invertible 1x1 convolutions", NeurIPS 2018.

    Example:
        >>> x, (p, lower, upper) = torch.randn(5, 3, 8, 8), torch.linalg.lu(torch.linalg.qr(torch.randn(3, 3))[0])
        >>> diagonal = upper.diag()
        >>> factors = p.argmax(1), lower, upper, diagonal.abs().log(), diagonal.sign()
        >>> y, log_det = lu_conv1x1(x, *factors)
        >>> back, _ = lu_conv1x1(y, *factors, inverse=True)
        >>> torch.allclose(back, x, atol=1e-4)
        True
    """
    _check(x, permutation, lower, upper, log_s, sign, bias, log_scale)
    dtype, vectors = x.dtype, [t for t in (log_s, sign, bias, log_scale) if t is not None]
    x, lower, upper, log_s, sign, *norm = (t.contiguous() for t in in_float32(x, lower, upper, *vectors))
    diagonal, log_det = sign * log_s.exp(), log_s.sum()
    if log_scale is not None:
        *norm, log_scale = norm
        scale = log_scale.exp()
        upper, diagonal, log_det = upper * scale, diagonal * scale, log_det + log_scale.sum()
    bias = norm[0] if norm else None
    positions = x.shape[2:].numel()
    if inverse:
        factors = (permutation, lower, upper, diagonal, torch.zeros_like(log_s) if bias is None else bias)
        y = _solve(x.reshape(x.shape[0], x.shape[1], positions), *factors).reshape(x.shape)
    else:
        with without_autocast(x):
            y = product(x, reference.weight_of(permutation, lower, upper, diagonal), bias)
    return y.to(dtype), log_det.expand(x.shape[0]) * (-positions if inverse else positions)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns ``weight (x + bias)`` at every position, by PyTorch's matrix product."""
    shift = None if bias is None else weight @ bias
    if x.dim() == 2:
        return F.linear(x, weight, shift)
    weights, columns = weight.expand(x.shape[0], -1, -1), x.flatten(2)
    y = weights.bmm(columns) if shift is None else torch.baddbmm(shift[:, None], weights, columns)
    return y.reshape(x.shape)


def _check(
    x: Tensor,
    permutation: Tensor,
    lower: Tensor,
    upper: Tensor,
    log_s: Tensor,
    sign: Tensor,
    bias: Tensor | None,
    log_scale: Tensor | None,
) -> None:
    if x.dim() < 2 or not x.shape[1]:
        raise ValueError(f"x must have shape [N, C, ...], C at least 1, got {tuple(x.shape)}")
    channels, device = x.shape[1], x.device
    square, vector = (channels, channels), (channels,)
    given: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("lower", lower, square),
        ("upper", upper, square),
        ("log_s", log_s, vector),
        ("sign", sign, vector),
    ]
    given += [("bias", bias, vector), ("log_scale", log_scale, vector), ("permutation", permutation, vector)]
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}")
    for name, tensor, wanted in given:
        if tensor is None:
            continue
        if name != "permutation" and not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
        if tensor.shape != wanted:
            raise ValueError(
                f"{name} must have shape {wanted} for x of shape {tuple(x.shape)}, got {tuple(tensor.shape)}"
            )
        if tensor.device != device:
            check_device(name, tensor, "x", device)
    if permutation.dtype != torch.int64:
        raise TypeError(f"permutation must be int64, got {permutation.dtype}")
    if has_numbers(permutation) and sorted(permutation.tolist()) != list(range(channels)):
        raise ValueError(f"permutation must have every number below {channels} once, got {permutation.tolist()}")
