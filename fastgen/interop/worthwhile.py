"""Whether a kernel that may take a call also saves time."""

from __future__ import annotations

import math

from torch import Tensor

NEVER_ON_CPU = math.inf
LARGE = 2**18
"""Elements whose temporary copies no longer stay in a core's cache."""

ALWAYS = False
"""True takes every call that a kernel can: for tests, whose tensors are small."""


def is_worthwhile(x: Tensor, least: float) -> bool:
    """Returns whether x has at least so many elements, on the CPU: PyTorch's passes over a small tensor are cheap.

    On a GPU each of them is a launch, and one kernel in their place always saves time.
    """
    return ALWAYS or x.device.type != "cpu" or x.numel() >= least
