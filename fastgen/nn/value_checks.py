"""Checks of a tensor's values, made only where looking at them costs nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.precision import in_float32


def readable(tensor: Tensor, inverse: bool) -> bool:
    """Returns whether a check may look at the tensor's values.

    It may not under torch.compile and torch.func, and in the forward direction only on the CPU: on another device it
    would wait for the device in every call.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() or tensor.is_meta:
        return False
    return inverse or tensor.device.type == "cpu"


def check_finite(parameter: Tensor, name: str, inverse: bool, is_logarithm: bool = False) -> None:
    """Raises ValueError for a parameter that is not finite, or for a logarithm whose exp is 0 or infinite.

    Checks nothing where the values are not ``readable``.
    """
    if not readable(parameter, inverse):
        return
    (values,) = in_float32(parameter.detach())
    if not torch.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got {int((~torch.isfinite(values)).sum())} values that are not")
    if is_logarithm and not (torch.isfinite(values.exp()) & torch.isfinite((-values).exp())).all():
        least, most = (float(v) for v in values.aminmax())
        raise ValueError(
            f"{name} must have an exp that is neither 0 nor infinite, got numbers from {least:g} to {most:g}"
        )
