"""The elementwise transform of Flow++ by a mixture of logistics: forward, inverse, log-determinant."""

from __future__ import annotations

from torch import Tensor

from fastgen.ops.autograd import backward_of, differentiable, leading
from fastgen.ops.precision import in_float32
from fastgen.ops.registry import Op
from fastgen.reference import logistic_mixture_cdf as reference


def _fake(x: Tensor, *_) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _fake_backward(grad_y: Tensor, grad_log_det: Tensor, x: Tensor, parameters: Tensor, *_) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), parameters.new_empty(parameters.shape)


OP = Op(
    "logistic_mixture_cdf(Tensor x, Tensor parameters, bool inverse) -> (Tensor, Tensor)",
    reference.logistic_mixture_cdf,
    _fake,
)
BACKWARD = Op(
    "logistic_mixture_cdf_backward(Tensor grad_y, Tensor grad_log_det, Tensor x, Tensor parameters, bool inverse)"
    " -> (Tensor, Tensor)",
    backward_of(reference.logistic_mixture_cdf, 2),
    _fake_backward,
    part_of="logistic_mixture_cdf",
)
_call = differentiable(OP, BACKWARD, leading)


def logistic_mixture_cdf(x: Tensor, parameters: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Monotone transform by the cdf of a mixture of logistics, elementwise, with its log-derivative, in one pass.

    With ``z_m = (x - mean_m) exp(-log_scale_m)`` and weights ``softmax(logits)``::

        F(x) = sum_m weight_m sigmoid(z_m)
        y = log F(x) - log(1 - F(x))
        log dy/dx = log F'(x) - log F(x) - log(1 - F(x))

    Both logarithms are sums of their own, so that neither tail loses digits: y grows like x / scale on both sides.

    The inverse is sought between the inverses of the components, ``mean_m + exp(log_scale_m) y``, by Newton steps that
    stay in a bracket and halve their length, and by halving the bracket where they do not, to the last bits of the
    dtype.

    Args:
        x: float [...], finite. float16 and bfloat16 are computed in float32 (autocast included).
        parameters: float [..., 3 M], straight from a network: M logits, M means, M logarithms of scales.
        inverse: y to x, with the log-derivative of that.

    Returns:
        y [...] of x's dtype, and log dy/dx [...], float32 for inputs of 32 bits or fewer, else float64.

    Raises:
        TypeError: x or parameters are not floating point.
        ValueError: shapes that do not fit.

    Reference: Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", ICML 2019, section 3.3.

    Example:
        >>> import torch
        >>> x, raw = torch.randn(5, 2), torch.randn(5, 2, 3 * 4)
        >>> y, log_det = logistic_mixture_cdf(x, raw)
        >>> back, _ = logistic_mixture_cdf(y, raw, inverse=True)
        >>> torch.allclose(back, x, atol=1e-4)
        True
    """
    for name, tensor in (("x", x), ("parameters", parameters)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    if parameters.shape[:-1] != x.shape or parameters.dim() == 0:
        raise ValueError(
            f"parameters must have the shape of x, {tuple(x.shape)}, and one dimension more, got "
            f"{tuple(parameters.shape)}"
        )
    if parameters.shape[-1] == 0 or parameters.shape[-1] % 3:
        raise ValueError(
            f"parameters must have 3 M numbers for each element of x, for M components, got {parameters.shape[-1]}"
        )
    y, log_det = _call(*in_float32(x, parameters), inverse)
    return y.to(x.dtype), log_det
