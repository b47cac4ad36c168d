"""Fixed points of contractions, sample by sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_ROUNDING = 8
"""Units in the last place of a sample's largest number, below which its residual cannot be brought for certain."""


class FixedPointNotConverged(RuntimeError):
    """An iteration did not reach its tolerance."""


@torch.no_grad()
def fixed_point(
    step: Callable[[Tensor, Tensor], Tensor], start: Tensor, *, tolerance: float, max_iterations: int
) -> Tensor:
    """x [N, D...] with ``|step(x) - x| <= tolerance`` in every element, by ``x <- step(x)``.

    Each sample stops when it is there and takes no part in what the others still need. Where 8 units in the last place
    of the largest number of ``start``'s sample are more than the tolerance, they are its tolerance.

    Args:
        step: called with the samples that go on and their numbers, int64; returns their next values.
        start: the first x.

    Raises:
        FixedPointNotConverged: a sample is not there after so many iterations.

    Example:
        >>> root = fixed_point(lambda x, rows: x.cos(), torch.ones(1, 1), tolerance=1e-6, max_iterations=100)
        >>> round(root.item(), 5)
        0.73909
    """
    x, rows, last = start.clone(), torch.arange(len(start), device=start.device), start
    floor = _ROUNDING * torch.finfo(start.dtype).eps * _largest(start)
    allowed = floor.clamp_min(tolerance)
    for _ in range(max_iterations):
        new = step(last, rows)
        residual = _largest(new - last)
        arrived = residual <= allowed
        if arrived.any():
            x[rows[arrived]] = last[arrived]
            going = ~arrived
            rows, new, residual, allowed = rows[going], new[going], residual[going], allowed[going]
        if not len(rows):
            return x
        last = new
    raise FixedPointNotConverged(
        f"{len(rows)} of {len(start)} samples are not within tolerance={tolerance:g} after max_iterations="
        f"{max_iterations}: the worst still moves by {float(residual.max()):.3g}"
    )


def _largest(x: Tensor) -> Tensor:
    """The largest size in each sample, [N]; NaN where there is one."""
    flat = x.flatten(1)
    return flat.abs().amax(1) if flat.shape[1] else flat.new_zeros(x.shape[0])
