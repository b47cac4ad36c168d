"""nflows 0.14 on fastgen's kernels."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from nflows.transforms import autoregressive, splines
from nflows.transforms.splines import cubic, rational_quadratic
from torch import Tensor

from fastgen.interop.dispatch import has_kernel, packed
from fastgen.interop.patching import Patches
from fastgen.ops import rq_spline

PATCHES = Patches()


def patch() -> None:
    """Replaces what ``fastgen.accelerate("nflows")`` does; ``PATCHES.restore()`` takes it back."""
    _replace(_rational_quadratic_spline, rational_quadratic, splines, autoregressive)
    _replace(_unconstrained_rational_quadratic_spline, rational_quadratic, splines, autoregressive)
