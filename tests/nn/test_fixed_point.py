from __future__ import annotations

import math

import pytest
import torch

from fastgen.nn.residual.fixed_point import FixedPointNotConverged, fixed_point

SLOPES = torch.tensor([0.0, 0.3, 0.9, -0.95], dtype=torch.float64)[:, None]


def solve(tolerance: float, seen: list[int] | None = None, limit: int = 1000, slopes=SLOPES) -> torch.Tensor:
    """x = slope x + 1 for each slope."""

    def step(x, rows):
        if seen is not None:
            seen.extend(rows.tolist())
        return slopes[rows] * x + 1

    start = torch.zeros(len(slopes), 2, dtype=torch.float64)
    return fixed_point(step, start, tolerance=tolerance, max_iterations=limit)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-12])
def test_every_element_is_within_the_tolerance(tolerance):
    x = solve(tolerance)
    assert (SLOPES * x + 1 - x).abs().max() <= tolerance
    assert ((1 / (1 - SLOPES) - x).abs() <= tolerance / (1 - SLOPES.abs())).all()


def test_each_sample_takes_the_steps_that_it_needs():
    seen: list[int] = []
    solve(1e-6, seen)
    for i, slope in enumerate(SLOPES.flatten().tolist()):
        needed = 2 if slope == 0 else math.ceil(math.log(1e-6) / math.log(abs(slope))) + 1
        assert seen.count(i) == needed


def test_where_it_does_not_converge_the_error_says_how_far_it_is():
    slopes = torch.tensor([0.5, 2.0, -1.0], dtype=torch.float64)[:, None]
    wanted = (
        r"2 of 3 samples are not within tolerance=1e-06 after max_iterations=50: the worst still moves by 5.63e\+14"
    )
    with pytest.raises(FixedPointNotConverged, match=wanted):
        solve(1e-6, limit=50, slopes=slopes)
    with pytest.raises(FixedPointNotConverged, match=r"1 of 1 samples .* by nan"):
        solve(1e-6, limit=3, slopes=torch.full((1, 1), math.nan))


def test_the_tolerance_does_not_ask_for_more_than_rounding_allows():
    start = torch.tensor([[1e6], [0.0]])
    z = start.clone()
    x = fixed_point(lambda x, rows: z[rows] - 0.9 * x.sin(), start, tolerance=1e-6, max_iterations=200)
    residual = (x + 0.9 * x.sin() - z).abs()
    assert residual[0] <= 8 * torch.finfo(torch.float32).eps * 1e6
    assert residual[1] <= 1e-6


def test_nothing_to_solve():
    empty = torch.zeros(0, 3)
    assert fixed_point(lambda x, rows: x, empty, tolerance=1e-6, max_iterations=5).shape == (0, 3)
