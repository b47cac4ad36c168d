from __future__ import annotations

from math import inf, log

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from fastgen import metrics


def test_the_estimate_is_that_of_two_gaussians():
    true, model = Normal(0.0, 1.0), Normal(0.3, 1.4)
    points = torch.randn(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = metrics.kl_divergence(true.log_prob(points), model.log_prob(points))
    assert abs(found.nats - kl_divergence(true, model).item()) < 4 * found.standard_error
    ratios = true.log_prob(points) - model.log_prob(points)
    assert found.standard_error == pytest.approx(ratios.std().item() / 20_000**0.5)


def test_it_is_zero_for_the_truth():
    log_true = torch.randn(5)
    assert metrics.kl_divergence(log_true, log_true) == metrics.Divergence(0.0, 0.0)


@pytest.mark.parametrize(
    ("log_true", "message"),
    [([0.0], r"log_true has shape \(1,\), log_model \(2,\)"), ([0.0, -inf], "1 values that are not finite")],
)
def test_it_refuses(log_true, message):
    with pytest.raises(ValueError, match=message):
        metrics.kl_divergence(torch.tensor(log_true), torch.zeros(2))
    with pytest.raises(ValueError, match="fewer than 2 points"):
        metrics.kl_divergence(torch.zeros(1), torch.zeros(1))


def test_an_evaluation_in_nats_says_so():
    scored = metrics.summarise(torch.tensor([-1.0, -3.0]), 2, "nats", torch.tensor([-0.5, -2.5]))
    assert (scored.value, scored.nats, scored.bits_per_dim) == (2.0, 2.0, pytest.approx(1 / log(2)))
    assert scored.standard_error == pytest.approx(1.0)
    assert str(scored) == "2.0000 +- 1.0000 nats (2 examples), KL(true || model) 0.5000 +- 0.0000 nats"
