"""Functions and classes that make their tensors on the CPU, whatever PyTorch's default device is."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import FunctionType

import torch


def on_cpu(made: type) -> type:
    """Makes the methods of a class, but for private ones and properties, run with the CPU as the default device."""
    for name, method in list(vars(made).items()):
        if name.startswith("_") and not name.endswith("__"):
            continue
        if isinstance(method, classmethod):
            setattr(made, name, classmethod(called_on_cpu(method.__func__)))
        elif isinstance(method, FunctionType):
            setattr(made, name, called_on_cpu(method))
    return made


def called_on_cpu(function: Callable) -> Callable:
    """Makes a function run with the CPU as the default device."""

    @wraps(function)
    def call(*args, **kwargs):
        if torch.get_default_device().type == "cpu":
            return function(*args, **kwargs)
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return call
