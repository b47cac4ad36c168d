"""Whether a kernel may take a call of another library."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastgen.ops.precision import is_autocast
from fastgen.ops.registry import OPS


def eligible(op: str, *tensors: Tensor) -> bool:
    """Returns whether a compiled kernel of ``op`` takes these tensors, in a plain eager call.

    It takes float32 on one device that has the kernel. Calls that ``torch.compile``, ``torch.func``, forward-mode
    differentiation or autocast look on at are left to the library, whose formula they see through.
    """
    if is_transformed() or not all(isinstance(t, Tensor) for t in tensors):
        return False
    device = tensors[0].device
    if any(t.dtype != torch.float32 or t.device != device for t in tensors):
        return False
    return has_kernel(op, device.type) and not is_autocast(tensors[0])


def is_transformed() -> bool:
    """Returns whether ``torch.compile``, a transform of ``torch.func`` or forward-mode differentiation is active."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


def has_kernel(op: str, device: str) -> bool:
    """Returns whether ``op`` has a compiled kernel on a kind of device."""
    if device == "cpu":
        return OPS[op].refusal("cpu", device) is None
    return device == "cuda" and OPS[op].cuda != "reference"
