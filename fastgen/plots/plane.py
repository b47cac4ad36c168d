"""Densities and points of the plane side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

RESOLUTION = 240
SHOWN = 4096
"""Points in a panel, at most."""


@dataclass(frozen=True)
class Plane:
    """A square of the plane: ``low`` and ``high`` of both coordinates."""

    low: tuple[float, float]
    high: tuple[float, float]

    @classmethod
    def around(cls, points: Tensor, margin: float = 0.08) -> Plane:
        """The rectangle that holds points ``[N, 2]``, with a margin."""
        low, high = points.amin(0), points.amax(0)
        wide = margin * (high - low)
        return cls(tuple((low - wide).tolist()), tuple((high + wide).tolist()))

    @property
    def points(self) -> Tensor:
        """The grid, float64 ``[RESOLUTION**2, 2]``: the second coordinate runs fastest."""
        edges = [
            torch.linspace(a, b, RESOLUTION, dtype=torch.float64) for a, b in zip(self.low, self.high, strict=True)
        ]
        return torch.cartesian_prod(*edges)


def save_plane(
    path: Path, plane: Plane, log_densities: dict[str, Tensor], points: dict[str, Tensor], columns: tuple[str, ...]
) -> None:
    """Log-densities ``[RESOLUTION**2]`` on the grid of ``plane``, and point sets ``[N, 2]``, as the panels of a PNG.

    The densities share one colour scale, which ends at the first one's maximum.
    """
    from matplotlib.figure import Figure

    count = len(log_densities) + len(points)
    rows = 2 if count == 4 else 1
    figure = Figure(figsize=(3.6 * count / rows + 0.5, 3.7 * rows), layout="constrained", dpi=120)
    axes = figure.subplots(rows, count // rows, sharex=True, sharey=True, squeeze=False).flatten()
    extent = (plane.low[0], plane.high[0], plane.low[1], plane.high[1])
    highest = float(next(iter(log_densities.values())).exp().max())
    for axis, (caption, values) in zip(axes, log_densities.items(), strict=False):
        grid = values.exp().reshape(RESOLUTION, RESOLUTION).T.numpy()
        shown = axis.imshow(
            grid,
            origin="lower",
            extent=extent,
            cmap="magma",
            vmin=0,
            vmax=highest,
            aspect="auto",
            interpolation="bilinear",
        )
        axis.set_title(caption, fontsize=10)
    figure.colorbar(shown, ax=list(axes[: len(log_densities)]), shrink=0.9, label="density")
    for axis, (caption, values) in zip(axes[len(log_densities) :], points.items(), strict=True):
        drawn = values[:SHOWN]
        axis.scatter(*drawn.T.numpy(), s=1.5, color="#3b528b", alpha=0.5, linewidths=0)
        axis.set_title(f"{caption}, {len(drawn)} points", fontsize=10)
    for axis in axes:
        axis.set(xlim=extent[:2], ylim=extent[2:])
        axis.tick_params(labelsize=8)
    figure.supxlabel(columns[0], fontsize=9)
    figure.supylabel(columns[1], fontsize=9)
    figure.savefig(path)
