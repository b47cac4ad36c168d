"""Eval mode for a while, every submodule getting its own mode back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """``module.eval()`` inside; afterwards each submodule is in the mode it was in, a frozen one in eval mode."""
    modes = [(part, part.training) for part in module.modules()]
    set_mode(module, training=False)
    try:
        yield
    finally:
        for part, training in modes:
            if part.training != training:
                set_mode(part, training)


def set_mode(module: nn.Module, training: bool) -> None:
    """``module.train(training)``; the module of an exported program refuses it, and keeps what it was exported in."""
    try:
        module.train(training)
    except NotImplementedError:
        module.training = training
        for part in module.children():
            set_mode(part, training)
