"""Workloads of the table of ops: one call of each op, of a size that people use.

An op of ``fastgen.ops`` that has no workload fails ``tests/test_ops_table.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen.nn import MADE

from .quick import size


@dataclass
class Workload:
    """One call of an op.

    Attributes:
        what: sizes, for the reader.
        fused: what one pass over memory does.
        make: the arguments of the public function, by name, with so many times the samples.
        operations: multiplications and additions of the forward, where they and not memory set the floor.
        on_gpu: how many times the samples a GPU gets: enough that a call takes longer than its launch, and that no
            cache holds its tensors.
    """

    what: str
    fused: str
    make: Callable[[int], dict]
    operations: float = 0.0
    on_gpu: int = 32


def _affine_coupling(many: int) -> dict:
    n, c, h, w = size((16, 24, 64, 64), (2, 4, 3, 5))
    n *= many
    return {"x": torch.randn(n, c, h, w), "parameters": torch.randn(n, 2 * c, h, w)}


def _elementwise(parameters: int) -> Callable[[int], dict]:
    rows, width = size((4096, 64), (16, 3))

    def make(many: int) -> dict:
        shape = many * rows, width
        return {"x": 2 * torch.randn(shape), "parameters": torch.randn(*shape, parameters)}

    return make


_N1, _C1, _O1, _T1 = size((4, 64, 128, 16000), (1, 3, 6, 40))


def _causal_conv1d(many: int) -> dict:
    x, weight = torch.randn(many * _N1, _C1, _T1), torch.randn(_O1, _C1, 2) / (2 * _C1) ** 0.5
    return {"x": x, "weight": weight, "bias": torch.randn(_O1), "dilation": 16, "gate": "tanh_sigmoid"}


_NI, _CI, _PI = size((64, 12, 32), (2, 4, 3))


def _lu_conv1x1(many: int) -> dict:
    permutation, lower, upper = torch.linalg.lu(torch.linalg.qr(torch.randn(_CI, _CI))[0])
    diagonal = upper.diag()
    factors = {"permutation": permutation.argmax(1), "lower": lower, "upper": upper}
    factors |= {"log_s": diagonal.abs().log(), "sign": diagonal.sign(), "bias": torch.randn(_CI)}
    return {"x": torch.randn(many * _NI, _CI, _PI, _PI), "log_scale": torch.randn(_CI) / 10, "inverse": True} | factors


_NA, _D, _H = size((1024, 64, 512), (8, 4, 8))


def _sequential_affine(many: int) -> dict:
    made = MADE(_D, [_H, _H])
    parameters = [p.detach() for layer in made.layers for p in (layer.weight, layer.bias)]
    return {"u": torch.randn(many * _NA, _D), "parameters": parameters, "degrees": made.degrees}


_NL, _HL, _PL = size((16, 16, 28), (2, 3, 5))


def _skew_lstm(many: int) -> dict:
    gates, weight = torch.randn(many * _NL, 4 * _HL, _PL, _PL), torch.randn(4 * _HL, _HL, 3) / (3 * _HL) ** 0.5
    return {"gates": gates, "weight": weight}


def _logistic_mixture(many: int) -> dict:
    n, pixels = size((16, 32 * 32), (2, 12))
    n *= many
    return {"level": torch.randint(0, 256, (n, pixels, 3)), "parameters": torch.randn(n, pixels, 100)}


_N, _C, _P = size((16, 64, 32), (2, 3, 6))


def _masked_conv2d(many: int) -> dict:
    x, weight = torch.randn(many * _N, _C, _P, _P), torch.randn(_C, _C, 2, 3)
    return {"x": x, "weight": weight, "bias": torch.randn(_C), "mask": "B"}


_ROWS, _CODES, _WIDTH = size((16384, 512, 64), (40, 9, 5))


def _vector_quantize(many: int) -> dict:
    return {"x": torch.randn(many * _ROWS, _WIDTH), "codebook": torch.randn(_CODES, _WIDTH)}


def _philox_uniform(many: int) -> dict:
    samples, positions = size((64, 16384), (4, 9))
    indices = {"samples": torch.arange(many * samples), "positions": torch.arange(positions)}
    return {"seed": 0, "channel": 0, "draw": 0} | indices


WORKLOADS = {
    "affine_coupling": Workload(
        "[16, 24, 64, 64], exp", "scale, shift, exp and the log-determinant's sum", _affine_coupling
    ),
    "causal_conv1d": Workload(
        "64 to 128 channels, 2 taps, 16,000 times, batch 4",
        "products, bias, condition and gate, strip by strip of neighbouring times",
        _causal_conv1d,
        operations=4.0 * _N1 * _T1 * _C1 * _O1,
    ),
    "cubic_spline": Workload(
        "262,144 elements, 8 bins",
        "softmax, search, Steffen's derivatives, cubic, tails, log-derivative",
        _elementwise(18),
    ),
    "logistic_mixture": Workload(
        "16 images of 32 x 32 x 3, 10 components",
        "softmax, channel coefficients, cdf differences, edges, log-sum-exp",
        _logistic_mixture,
    ),
    "logistic_mixture_cdf": Workload(
        "262,144 elements, 8 components", "softmax, log-cdf, log-survival, log-density, their weights", _elementwise(24)
    ),
    "lu_conv1x1": Workload(
        "[64, 12, 32, 32], inverse",
        "permutation, both triangular solves, actnorm",
        _lu_conv1x1,
        operations=2.0 * _NI * _CI * _CI * _PI * _PI,
    ),
    "masked_conv2d": Workload(
        "64 to 64 channels, 3 x 3, 32 x 32, batch 16",
        "zero padding; products by the taps that the mask leaves and no others",
        _masked_conv2d,
        operations=2.0 * _N * _P * _P * _C * _C * 5,
    ),
    "philox_uniform": Workload("64 streams of 16,384", "ten rounds and the conversion to float64", _philox_uniform),
    "rq_spline": Workload(
        "262,144 elements, 8 bins", "softmax, softplus, search, spline, tails, log-derivative", _elementwise(23)
    ),
    "sequential_affine": Workload(
        "64 features, hidden 512 x 2, batch 1,024",
        "masked stack unit by unit, activation, affine map, log-determinant",
        _sequential_affine,
        operations=1.0 * _NA * (_D * _H + _H * _H + 2 * _H * _D),
        on_gpu=4,  # the reference keeps every one of its passes for its backward
    ),
    "skew_lstm": Workload(
        "hidden 16, 28 x 28, batch 16",
        "every step's convolution, gates and cell",
        _skew_lstm,
        operations=2.0 * 4 * _HL * _HL * 3 * _NL * _PL * _PL,
    ),
    "vector_quantize": Workload(
        "16,384 rows, 512 codes of 64",
        "distances, argmin, chosen rows, counts and sums of the codes",
        _vector_quantize,
        operations=2.0 * _ROWS * _CODES * _WIDTH,
    ),
}


def on(device: str, value):
    """Moves tensors (in lists too) to the device; returns anything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    return [on(device, each) for each in value] if isinstance(value, list) else value
