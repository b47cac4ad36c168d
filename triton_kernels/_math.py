"""Functions that several kernels share: none overflows, and all are within a few units in the last place of float32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    z = tl.exp(-tl.abs(x))
    return tl.where(x < 0, z, 1.0) / (1.0 + z)


@triton.jit
def tanh(x):
    """tanh(x): by exponentials, by its series below 0.1."""
    z = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - z) / (1.0 + z)
    small = tl.minimum(tl.abs(x), 1.0)
    square = small * small
    near = small * (1.0 - square * (1.0 / 3 - square * (2.0 / 15 - square * (17.0 / 315 - square * (62.0 / 2835)))))
    size = tl.where(small < 0.1, near, size)
    return tl.where(x < 0, -size, size)


@triton.jit
def softplus(x):
    """log(1 + exp(x)); log(1 + z) is exact to rounding where 1 + z is rounded, too."""
    z = tl.exp(-tl.abs(x))
    u = 1.0 + z
    return tl.maximum(x, 0.0) + tl.where(u == 1.0, z, tl.log(u) * z / tl.where(u == 1.0, 1.0, u - 1.0))
