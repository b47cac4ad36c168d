from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from fastgen.data import SPLITS, DataConfig, load
from fastgen.data.toys import TOYS

BOXES = {
    "two_moons": ((-1.6, 2.6), (-1.1, 1.6)),
    "eight_gaussians": ((-5, 5), (-5, 5)),
    "checkerboard": ((-4, 4), (-4, 4)),
    "rings": ((-3.5, 3.5), (-3.5, 3.5)),
}
"""Without what is further than 5 standard deviations of the noise from every centre."""
CELLS, FINE = 8, 25
"""Cells of a box in each direction, and points of the grid in each direction of a cell."""


def _cell_probabilities(name: str) -> torch.Tensor:
    """The integral of the density over each of the cells, by the midpoint rule."""
    edges = [a + (b - a) * (torch.arange(CELLS * FINE).double() + 0.5) / (CELLS * FINE) for a, b in BOXES[name]]
    density = TOYS[name].log_density(torch.cartesian_prod(*edges)).exp()
    area = np.prod([b - a for a, b in BOXES[name]]) / (CELLS * FINE) ** 2
    return density.reshape(CELLS, FINE, CELLS, FINE).sum((1, 3)) * area


@pytest.mark.parametrize("name", BOXES)
def test_the_density_integrates_to_one(name):
    assert abs(_cell_probabilities(name).sum() - 1) < 2 * 5.8e-7  # of a normal beyond 5 deviations


@pytest.mark.parametrize("name", BOXES)
def test_draws_follow_the_density(name):
    count = 20_000
    draws = TOYS[name].draw(np.random.default_rng(5), count)
    found, *_ = np.histogram2d(*draws.T, bins=CELLS, range=BOXES[name])
    expected = count * _cell_probabilities(name).numpy()
    large = expected >= 5
    others = (count - found[large].sum(), count - expected[large].sum())
    statistic = ((found - expected)[large] ** 2 / expected[large]).sum() + (others[0] - others[1]) ** 2 / max(
        others[1], 5
    )
    assert statistic < chi2.ppf(1 - 1e-4, large.sum())


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_is_the_same_whenever_it_is_loaded_and_its_splits_differ(name):
    one, other = (load(DataConfig(name, examples=500)) for _ in range(2))
    assert (one.kind, one.event_shape, one.levels, one.columns) == ("vector", (2,), 0, ("x0", "x1"))
    assert [len(one.splits[split]) for split in SPLITS] == [500, 5_000, 20_000]
    assert all(torch.equal(one.splits[split].values, other.splits[split].values) for split in SPLITS)
    assert not torch.equal(one.splits["validation"].values[:500], one.splits["train"].values)
    more = load(DataConfig(name, examples=600))
    held_out = [d.standardization.undo(d.splits["test"].values) for d in (one, more)]
    torch.testing.assert_close(*held_out, rtol=0, atol=1e-5)


def test_draws_have_a_finite_true_density():
    for name in BOXES:
        data = load(DataConfig(name, examples=10))
        assert data.log_density(data.standardization.undo(data.splits["test"].values)).isfinite().all()


def test_too_few_examples_are_refused():
    with pytest.raises(ValueError, match="examples must be 2 or more, got 1"):
        load(DataConfig("rings", examples=1))
