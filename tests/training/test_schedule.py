from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastgen.training.config import OptimizerConfig
from fastgen.training.schedule import learning_rate_schedule, rate_factor

DECAYS = st.sampled_from(["cosine", "exponential", "constant"])


@given(decay=DECAYS, warmup=st.integers(0, 20), steps=st.integers(1, 60))
def test_rate_rises_in_warmup_then_never_and_stays_in_bounds(decay, warmup, steps):
    config = OptimizerConfig(rate=1e-2, final_rate=1e-4, warmup=warmup, decay=decay)
    rates = [config.rate * rate_factor(config, step, steps) for step in range(steps)]
    rising, falling = rates[:warmup], rates[max(0, warmup - 1) :]
    assert rising == sorted(rising)
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(falling))
    assert all(0 < rate <= 1e-2 * (1 + 1e-12) for rate in rates)
    assert all(rate >= 1e-4 * (1 - 1e-12) for rate in rates[warmup:])


@pytest.mark.parametrize("decay", ["cosine", "exponential"])
def test_rate_reaches_its_ends(decay):
    config = OptimizerConfig(rate=1e-2, final_rate=1e-4, warmup=10, decay=decay)
    assert rate_factor(config, 10, 110) == 1
    assert rate_factor(config, 110, 110) == pytest.approx(1e-2)


@pytest.mark.parametrize("start", [0, 3, 7])
def test_an_optimizer_is_given_the_rates_from_any_step_on(start):
    config = OptimizerConfig(rate=1e-2, final_rate=1e-4, warmup=5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.rate)
    schedule = learning_rate_schedule(optimizer, config, start, 10)
    for step in range(start, 10):
        assert optimizer.param_groups[0]["lr"] == config.rate * rate_factor(config, step, 10)
        optimizer.step()
        schedule.step()
