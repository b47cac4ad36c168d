"""Checks of arguments: the errors name the argument, what was given and what is allowed."""

from __future__ import annotations

from numbers import Integral, Real

import torch
from torch import Tensor


def check_integer(name: str, value: int, least: int, most: int | None = None) -> int:
    """Returns the value as an int; raises ValueError unless it is an integer in ``least .. most``."""
    wrong = isinstance(value, bool) or not isinstance(value, Integral) or value < least
    if wrong or (most is not None and value > most):
        allowed = f", {least} or more" if most is None else f" in {least} .. {most}"
        raise ValueError(f"{name} must be an integer{allowed}, got {value!r}")
    return int(value)


def finite_number(name: str, value: float) -> float:
    """Returns the value as a float; raises ValueError unless it is a real number that float32 holds."""
    wrong = isinstance(value, bool) or not isinstance(value, Real)
    if wrong or not abs(value) <= torch.finfo(torch.float32).max:
        raise ValueError(f"{name} must be a finite number of float32, got {value!r:.100}")
    return float(value)


def as_tensor(name: str, given) -> Tensor:
    """Returns a tensor, made of nested lists or an array if need be; raises ValueError where that fails."""
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a tensor, or numbers that make one, got {given!r}") from error
