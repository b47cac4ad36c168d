"""What the table of ops measures: one call of each op, of a size that people use.

An op of ``fastgen.ops`` that has no workload fails ``tests/test_ops_table.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .quick import size


@dataclass
class Workload:
    """One call of an op.

    Attributes:
        what: sizes, for the reader.
        fused: what one pass over memory does.
        make: the arguments of the public function, by name.
        operations: multiplications and additions of the forward, where they and not memory set the floor.
    """

    what: str
    fused: str
    make: Callable[[], dict]
    operations: float = 0.0


def _affine_coupling() -> dict:
    n, c, h, w = size((16, 24, 64, 64), (2, 4, 3, 5))
    return {"x": torch.randn(n, c, h, w), "parameters": torch.randn(n, 2 * c, h, w)}


def _rq_spline() -> dict:
    rows, width = size((4096, 64), (16, 3))
    return {"x": 2 * torch.randn(rows, width), "parameters": torch.randn(rows, width, 23)}


def _logistic_mixture() -> dict:
    n, pixels = size((16, 32 * 32), (2, 12))
    return {"level": torch.randint(0, 256, (n, pixels, 3)), "parameters": torch.randn(n, pixels, 100)}


_N, _C, _P = size((16, 64, 32), (2, 3, 6))


def _masked_conv2d() -> dict:
    return {"x": torch.randn(_N, _C, _P, _P), "weight": torch.randn(_C, _C, 3, 3), "bias": torch.randn(_C), "mask": "B"}


_ROWS, _CODES, _WIDTH = size((16384, 512, 64), (40, 9, 5))


def _vector_quantize() -> dict:
    return {"x": torch.randn(_ROWS, _WIDTH), "codebook": torch.randn(_CODES, _WIDTH)}


def _philox_uniform() -> dict:
    samples, positions = size((64, 16384), (4, 9))
    return {
        "seed": 0, "samples": torch.arange(samples), "positions": torch.arange(positions), "channel": 0, "draw": 0
    }  # fmt: skip


WORKLOADS = {
    "affine_coupling": Workload(
        "[16, 24, 64, 64], exp", "scale, shift, exp and the log-determinant's sum", _affine_coupling
    ),
    "logistic_mixture": Workload(
        "16 images of 32 x 32 x 3, 10 components",
        "softmax, channel coefficients, cdf differences, edges, log-sum-exp",
        _logistic_mixture,
    ),
    "masked_conv2d": Workload(
        "64 to 64 channels, 3 x 3, 32 x 32, batch 16",
        "nothing: oneDNN or cuDNN is handed the rows that the mask leaves",
        _masked_conv2d,
        operations=2.0 * _N * _P * _P * _C * _C * 5,
    ),
    "philox_uniform": Workload("64 streams of 16,384", "ten rounds and the conversion to float64", _philox_uniform),
    "rq_spline": Workload(
        "262,144 elements, 8 bins", "softmax, softplus, search, spline, tails, log-derivative", _rq_spline
    ),
    "vector_quantize": Workload(
        "16,384 rows, 512 codes of 64",
        "distances, argmin, chosen rows, counts and sums of the codes",
        _vector_quantize,
        operations=2.0 * _ROWS * _CODES * _WIDTH,
    ),
}


def on(device: str, value):
    """Tensors (in lists too) on the device; all else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    return [on(device, each) for each in value] if isinstance(value, list) else value
