"""The affine map of a coupling layer with its log-determinant: forward, inverse, and in place."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.autograd import backward_of, differentiable, loop
from fastgen.ops.precision import in_float32
from fastgen.ops.registry import Op
from fastgen.reference import affine_coupling as reference
from fastgen.reference.affine_coupling import PARAMETERISATIONS

_ARGUMENTS = "Tensor parameters, Tensor scale, Tensor? mask, bool inverse, int parameterisation, bool interleaved"


def _fake(x: Tensor, *_) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:1])


def _fake_over(x: Tensor, *_) -> Tensor:
    return x.new_empty(x.shape[:1])


def _fake_backward(
    grad_y: Tensor, grad_log_det: Tensor, x: Tensor, parameters: Tensor, scale: Tensor, *_
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(parameters.shape), x.new_empty(scale.shape)


OP = Op(f"affine_coupling(Tensor x, {_ARGUMENTS}) -> (Tensor, Tensor)", reference.affine_coupling, _fake)
BACKWARD = Op(
    f"affine_coupling_backward(Tensor grad_y, Tensor grad_log_det, Tensor x, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    backward_of(reference.affine_coupling, 2),
    _fake_backward,
    part_of="affine_coupling",
)
OVER = Op(
    f"affine_coupling_(Tensor(a!) x, {_ARGUMENTS}) -> Tensor",
    reference.affine_coupling_,
    _fake_over,
    not_differentiable="it writes over what its derivative needs",
    part_of="affine_coupling",
)
_call = differentiable(OP, BACKWARD, loop)


def affine_coupling(
    x: Tensor,
    parameters: Tensor,
    *,
    parameterisation: str = "exp",
    inverse: bool = False,
    scale: Tensor | float = 1.0,
    mask: Tensor | None = None,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor]:
    """The affine map of a coupling layer and its log-determinant, in one pass over memory.

    With t the shift and h the other half of ``parameters``, which come straight from a network::

        "exp":      y = x exp(h) + t
        "tanh":     y = x exp(scale tanh(h)) + t          RealNVP
        "sigmoid":  y = (x + t) sigmoid(h + 2)            Glow: the shift comes first

    On the CPU the log-determinant is summed with compensation and is bitwise the same for any number of threads.

    Args:
        x: float [N, C, ...]: the half that is transformed, or all of it with a mask. float16 and bfloat16 are computed
            in float32 (autocast included).
        parameters: float [N, 2 C, ...]: all shifts, then all h.
        parameterisation: "exp", "tanh" or "sigmoid".
        inverse: y to x, with the log-determinant of that.
        scale: of "tanh", a number or [C]; a tensor gets its gradient.
        mask: 0 and 1, or bool, that broadcasts to [C, ...]. Elements where it is 1 are kept; their log-determinant is
            0, and their parameters are not used.
        interleaved: shift and h alternate in the channels, as in Glow: shifts are channels 0, 2, 4, ...

    Returns:
        y [N, C, ...] of x's dtype, and log |det dy/dx| [N], float32 for inputs of 32 bits or fewer, else float64.

    Raises:
        TypeError: x, parameters or scale are not floating point.
        ValueError: an unknown parameterisation, or shapes that do not fit.

    References: Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", ICLR 2017; Kingma, Dhariwal, "Glow",
    NeurIPS 2018.

    Example:
        >>> x, parameters = torch.randn(5, 3, 8, 8), torch.randn(5, 6, 8, 8)
        >>> y, log_det = affine_coupling(x, parameters, parameterisation="sigmoid")
        >>> back, _ = affine_coupling(y, parameters, parameterisation="sigmoid", inverse=True)
        >>> torch.allclose(back, x, atol=1e-4)
        True
    """
    y, log_det = _call(*_arguments(x, parameters, parameterisation, inverse, scale, mask, interleaved))
    return y.to(x.dtype), log_det


def affine_coupling_(
    x: Tensor,
    parameters: Tensor,
    *,
    parameterisation: str = "exp",
    inverse: bool = False,
    scale: Tensor | float = 1.0,
    mask: Tensor | None = None,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor]:
    """``affine_coupling`` that writes y over x; for inference. ``parameters`` must not share memory with x.

    Arguments, results and errors are those of ``affine_coupling``; what is returned as y is x itself. An x that is not
    contiguous, or of half precision, is transformed beside itself and copied back.

    Raises:
        RuntimeError: gradients are recorded for x, parameters or scale: use ``affine_coupling``.

    Example:
        >>> x, parameters = torch.randn(5, 2), torch.randn(5, 4)
        >>> y, log_det = affine_coupling_(x, parameters)
        >>> y is x
        True
    """
    given = [t for t in (x, parameters, scale) if isinstance(t, Tensor)]
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        raise RuntimeError(
            "affine_coupling_ writes over x, which its gradient needs; use affine_coupling, or call it under "
            "torch.no_grad()"
        )
    arguments = _arguments(x, parameters, parameterisation, inverse, scale, mask, interleaved)
    if x.is_contiguous() and arguments[0].dtype == x.dtype:
        return x, OVER(x, *arguments[1:])
    y, log_det = OP(*arguments)
    return x.copy_(y), log_det


def _arguments(
    x: Tensor,
    parameters: Tensor,
    parameterisation: str,
    inverse: bool,
    scale: Tensor | float,
    mask: Tensor | None,
    interleaved: bool,
) -> tuple:
    """Checks the arguments and returns those of the op."""
    if parameterisation not in PARAMETERISATIONS:
        allowed = ", ".join(map(repr, PARAMETERISATIONS))
        raise ValueError(f"parameterisation must be one of {allowed}, got {parameterisation!r}")
    if not isinstance(scale, Tensor):
        scale = torch.as_tensor(float(scale), dtype=parameters.dtype, device=parameters.device)
    for name, tensor in (("x", x), ("parameters", parameters), ("scale", scale)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    if x.dim() < 2:
        raise ValueError(f"x must have shape [N, C, ...], got {tuple(x.shape)}")
    wanted = (x.shape[0], 2 * x.shape[1], *x.shape[2:])
    if tuple(parameters.shape) != wanted:
        raise ValueError(
            f"parameters must have shape {wanted} for x of shape {tuple(x.shape)}, got {tuple(parameters.shape)}"
        )
    channels = x.shape[1]
    if scale.dim() > 1 or (scale.dim() == 1 and scale.shape[0] != 1 and scale.shape[0] != channels):
        raise ValueError(f"scale must be a number or have shape ({channels},), got shape {tuple(scale.shape)}")
    if mask is not None:
        try:
            mask = (mask != 0).expand(x.shape[1:]).to(torch.uint8)
        except RuntimeError:
            raise ValueError(
                f"mask must broadcast to {tuple(x.shape[1:])}, the shape of a sample, got shape {tuple(mask.shape)}"
            ) from None
    tensors = in_float32(x, parameters, scale.expand(channels))
    return *tensors, mask, inverse, PARAMETERISATIONS.index(parameterisation), interleaved
