"""Monotone cubic spline of 262,144 elements with 8 bins: the kernel, eager PyTorch, torch.compile, nflows."""

from __future__ import annotations

import importlib.util

import pytest
from torch import Tensor

from fastgen.ops import cubic_spline
from fastgen.reference import cubic_spline as reference

from ..suite.elementwise import WAYS, Contest, run

pytestmark = [pytest.mark.needs_extension, pytest.mark.filterwarnings("default")]
NUMBERS = (1, -3.0, 3.0, -3.0, 3.0, 1e-3, 1e-3)  # linear tails on [-3, 3]


def nflows(x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    from nflows.transforms.splines.cubic import unconstrained_cubic_spline

    raw = parameters.split((8, 8, 1, 1), -1)
    return unconstrained_cubic_spline(x, *raw, inverse=inverse, tail_bound=3.0)


@pytest.mark.parametrize("what", WAYS)
@pytest.mark.benchmark(group="cubic_spline")
def bench_cubic_spline(benchmark, what):
    contest = Contest(
        "cubic_spline",
        "8 bins",
        2 * 8 + 2,
        lambda x, parameters, inverse: cubic_spline(x, parameters, inverse=inverse),
        lambda x, parameters, inverse: reference.cubic_spline(x, parameters, inverse, *NUMBERS),
        {"nflows": nflows} if importlib.util.find_spec("nflows") else {},
    )
    run(benchmark, contest, what)
