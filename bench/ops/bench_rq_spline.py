"""Rational-quadratic spline of 262,144 elements with 8 bins: the kernel, eager and compiled PyTorch, the libraries."""

from __future__ import annotations

import importlib
import importlib.util

import pytest
from torch import Tensor

from fastgen.ops import rq_spline
from fastgen.reference import rq_spline as reference

from ..suite.elementwise import WAYS, Contest, Transform, run

pytestmark = [pytest.mark.needs_extension, pytest.mark.filterwarnings("default")]
NUMBERS = (1, -3.0, 3.0, -3.0, 3.0, 1e-3, 1e-3, 1e-3)  # linear tails on [-3, 3]


def of_library(module: str) -> Transform:
    """Returns the call of a library's function; that of normflows is a copy of nflows'."""
    spline = importlib.import_module(module).unconstrained_rational_quadratic_spline

    def call(x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return spline(x, *parameters.split((8, 8, 7), -1), inverse=inverse, tail_bound=3.0)

    return call


def zuko(x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """Applies zuko's transform; its derivatives are exponentials, and its raw parameters bounded."""
    from zuko.transforms import MonotonicRQSTransform

    transform = MonotonicRQSTransform(*parameters.split((8, 8, 7), -1), bound=3.0)
    return (transform.inv if inverse else transform).call_and_ladj(x)


@pytest.mark.parametrize("what", WAYS)
@pytest.mark.benchmark(group="rq_spline")
def bench_rq_spline(benchmark, what):
    modules = {
        "nflows": "nflows.transforms.splines.rational_quadratic",
        "normflows": "normflows.utils.splines",
    }
    contest = Contest(
        "rq_spline",
        "8 bins",
        23,
        lambda x, parameters, inverse: rq_spline(x, parameters, inverse=inverse),
        lambda x, parameters, inverse: reference.rq_spline(x, parameters, inverse, *NUMBERS),
        {name: of_library(module) for name, module in modules.items() if importlib.util.find_spec(name)},
        {"zuko": zuko} if importlib.util.find_spec("zuko") else {},
    )
    run(benchmark, contest, what)
