"""Checks of arguments that several ops share."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor


def has_numbers(tensor: Tensor) -> bool:
    """Returns whether the values of the tensors can be read: on the CPU, outside of torch.compile and torch.func.

    On a GPU reading would wait for the device, in every call, and rule out CUDA graphs.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level():
        return False
    return tensor.device.type == "cpu"


def check_integers(least: int = 1, **numbers: int) -> None:
    """Raises ValueError naming the first number that is not an integer of Python or NumPy, or is below ``least``."""
    for name, number in numbers.items():
        if not isinstance(number, Integral) or isinstance(number, bool) or number < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {number!r}")


def check_device(name: str, tensor: Tensor, wanted_of: str, wanted: torch.device) -> None:
    """Raises ValueError for a tensor that is not on the device of the argument ``wanted_of``."""
    if tensor.device != wanted:
        raise ValueError(f"{name} must be on the device of {wanted_of}, {wanted}, got {tensor.device}")


def check_reach(dilation: int, taps: int) -> None:
    """Raises ValueError for a kernel longer than any tensor can be: sizes computed from it would overflow."""
    most = (1 << 31) // max(1, taps - 1)
    if dilation > most:
        raise ValueError(f"dilation must be at most {most} for {taps} taps, got {dilation}")
