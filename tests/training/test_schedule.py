from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.training.config import OptimizerConfig
from fastgen.training.schedule import learning_rate

DECAYS = st.sampled_from(["cosine", "exponential", "constant"])


@given(decay=DECAYS, warmup=st.integers(0, 20), steps=st.integers(1, 60))
def test_rate_rises_in_warmup_then_never_and_stays_in_bounds(decay, warmup, steps):
    config = OptimizerConfig(rate=1e-2, final_rate=1e-4, warmup=warmup, decay=decay)
    rates = [learning_rate(config, step, steps) for step in range(steps)]
    rising, falling = rates[:warmup], rates[max(0, warmup - 1) :]
    assert rising == sorted(rising)
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(falling))
    assert all(0 < rate <= 1e-2 * (1 + 1e-12) for rate in rates)
    assert all(rate >= 1e-4 * (1 - 1e-12) for rate in rates[warmup:])


@pytest.mark.parametrize("decay", ["cosine", "exponential"])
def test_rate_reaches_its_ends(decay):
    config = OptimizerConfig(rate=1e-2, final_rate=1e-4, warmup=10, decay=decay)
    assert learning_rate(config, 10, 110) == pytest.approx(1e-2)
    assert learning_rate(config, 110, 110) == pytest.approx(1e-4)
