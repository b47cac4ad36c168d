from __future__ import annotations

import itertools
from math import log

import pytest
import torch

from fastgen.metrics import bits_per_dim, gaussian_baseline

NODES = (0.5 - 3**-0.5 / 2, 0.5 + 3**-0.5 / 2)
"""Gauss-Legendre on [0, 1]: the mean over them is exact for a polynomial of degree 3."""


def test_real_numbers_have_the_density_of_the_fit():
    train, held_out = torch.randn(50, 2, 2, dtype=torch.float64), torch.randn(7, 2, 2, dtype=torch.float64)
    fit = train.flatten(1)
    gaussian = torch.distributions.MultivariateNormal(fit.mean(0), torch.cov(fit.T, correction=0))
    found = gaussian_baseline(train, held_out)
    torch.testing.assert_close(found.log_prob, gaussian.log_prob(held_out.flatten(1)))
    assert (found.shrinkage, found.evaluation.unit) == (0, "nats")
    assert found.evaluation.value == pytest.approx(-found.log_prob.mean().item())


def test_a_linear_map_of_real_numbers_adds_its_log_det():
    train, held_out, matrix = (torch.randn(n, 3, dtype=torch.float64) for n in (40, 5, 3))
    one = gaussian_baseline(train, held_out).log_prob
    other = gaussian_baseline(train @ matrix + 4, held_out @ matrix + 4).log_prob
    torch.testing.assert_close(other, one - matrix.slogdet()[1])


def test_levels_have_the_expectation_over_the_noise():
    train, held_out = (torch.randint(0, 5, (n, 1, 2), dtype=torch.uint8) for n in (30, 6))
    fit, scored = train.flatten(1).double(), held_out.flatten(1).double()
    covariance = torch.cov(fit.T, correction=0) + torch.eye(2) / 12
    gaussian = torch.distributions.MultivariateNormal(fit.mean(0) + 0.5, covariance)
    noises = torch.tensor(list(itertools.product(NODES, repeat=2)), dtype=torch.float64)
    wanted = torch.stack([gaussian.log_prob(scored + noise) for noise in noises]).mean(0)
    found = gaussian_baseline(train, held_out, levels=5)
    torch.testing.assert_close(found.log_prob, wanted)
    assert found.evaluation.value == pytest.approx(bits_per_dim(-wanted.mean().item(), 2))


def test_levels_that_never_vary_have_the_bound_of_the_uniform():
    constant = torch.full((4, 1), 3)
    found = gaussian_baseline(constant, constant, levels=8)
    assert found.shrinkage == 0
    assert found.evaluation.nats == pytest.approx(0.5 * (1 + log(2 * torch.pi / 12)))


def test_a_singular_covariance_is_shrunk_and_that_is_said():
    one = torch.randn(20, 1, dtype=torch.float64)
    found = gaussian_baseline(torch.cat([one, one], 1), torch.zeros(3, 2))
    assert found.shrinkage > 0
    assert "shrunk by 1e-06 towards its diagonal" in found.name
    assert found.log_prob.isfinite().all()


@pytest.mark.parametrize("levels", [0, 16])
def test_fewer_examples_than_dimensions_have_a_diagonal_covariance(levels):
    """A full covariance of so few is singular: a baseline that everything beats."""
    draw = (lambda *shape: torch.randint(levels, shape)) if levels else torch.randn
    train, held_out = draw(20, 30), draw(50, 30)
    found = gaussian_baseline(train, held_out, levels)
    each = [gaussian_baseline(train[:, [d]], held_out[:, [d]], levels).log_prob for d in range(30)]
    torch.testing.assert_close(found.log_prob, torch.stack(each).sum(0))
    assert found.name == "Gaussian of diagonal covariance (no more examples than dimensions)"


def test_what_has_no_density_is_refused():
    with pytest.raises(ValueError, match="train is constant in dimension 1"):
        gaussian_baseline(torch.stack([torch.arange(4.0), torch.ones(4)], 1), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"held_out has the event shape \(3,\)"):
        gaussian_baseline(torch.randn(4, 2), torch.zeros(1, 3))
