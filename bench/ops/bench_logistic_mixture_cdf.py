"""The transform of Flow++, 262,144 elements with 32 components: the kernel, eager PyTorch, torch.compile."""

from __future__ import annotations

import pytest

from fastgen.ops import logistic_mixture_cdf
from fastgen.reference import logistic_mixture_cdf as reference

from ..suite.elementwise import WAYS, Contest, run

pytestmark = pytest.mark.needs_extension


@pytest.mark.parametrize("what", [way for way in WAYS if way != "inverse"])
@pytest.mark.benchmark(group="logistic_mixture_cdf")
def bench_logistic_mixture_cdf(benchmark, what):
    contest = Contest(
        "logistic_mixture_cdf",
        "32 components",
        3 * 32,
        lambda x, parameters, inverse: logistic_mixture_cdf(x, parameters, inverse=inverse),
        reference.logistic_mixture_cdf,
        bars=(2, 5),
    )
    run(benchmark, contest, what)
