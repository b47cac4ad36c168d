"""Tells a forward that is computed again for a backward pass from a first one."""

from __future__ import annotations

import torch


def is_recomputation() -> bool:
    """Returns whether this call runs within a backward pass, where activation checkpointing computes a forward again.

    A layer whose state moves on in every forward leaves it as it is then, so that it moves once a step.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
