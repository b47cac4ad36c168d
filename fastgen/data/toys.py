"""Two-dimensional toy distributions, most of them with their true log-density."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log, pi

import numpy as np
import torch
from torch import Tensor

from fastgen.data.dataset import SPLITS, Dataset
from fastgen.data.standardization import Standardization
from fastgen.data.vectors import vectors

HELD_OUT = {"validation": 5_000, "test": 20_000}
"""Points of the splits that are not trained on."""


@dataclass(frozen=True)
class Toy:
    """``draw(generator, n)`` gives float64 points ``[n, 2]``; ``log_density`` maps points to nats ``[n]``, if known."""

    draw: Callable[[np.random.Generator, int], np.ndarray]
    log_density: Callable[[Tensor], Tensor] | None = None


def load_toy(name: str, examples: int, standardization: Standardization | None = None) -> Dataset:
    """``examples`` training points of a toy, 5,000 for validation, 20,000 for the test, each split of its own seed."""
    if examples < 2:
        raise ValueError(f"examples must be 2 or more, got {examples}")
    toy, counts = TOYS[name], {"train": examples} | HELD_OUT
    drawn = [toy.draw(np.random.default_rng([seed]), counts[split]) for seed, split in enumerate(SPLITS)]
    ends = np.cumsum([0, *map(len, drawn)])
    parts = {split: np.arange(ends[i], ends[i + 1]) for i, split in enumerate(SPLITS)}
    return vectors(name, np.concatenate(drawn), parts, log_density=toy.log_density, standardization=standardization)


MOON_NOISE = 0.1
GAUSSIAN_RADIUS, GAUSSIAN_DEVIATION = 4 / 2**0.5, 0.5 / 2**0.5
RINGS, RING_NOISE = (0.75, 1.5, 2.25, 3.0), 0.08
ARMS = 5


def _moon_centres(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Both half circles, without noise, at angles in [0, pi]."""
    x, y = angles.cos(), angles.sin()
    return torch.stack((x, y), -1), torch.stack((1 - x, 0.5 - y), -1)


def _draw_two_moons(generator: np.random.Generator, n: int) -> np.ndarray:
    upper, lower = (moon.numpy() for moon in _moon_centres(torch.from_numpy(generator.uniform(0, pi, n))))
    centres = np.where(generator.integers(0, 2, n)[:, None] == 0, upper, lower)
    return centres + MOON_NOISE * generator.standard_normal((n, 2))


def _two_moons(points: Tensor) -> Tensor:
    """The integral over the angle by Gauss-Legendre quadrature: 256 nodes on each moon, exact to rounding."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(256))
    centres, log_weights = torch.cat(_moon_centres((nodes + 1) * pi / 2)), (weights / 4).log().repeat(2)
    parts = points.double().split(4096)
    return torch.cat([_log_mixture(part, centres, MOON_NOISE, log_weights) for part in parts])


def _gaussian_centres() -> Tensor:
    angles = torch.arange(8, dtype=torch.float64) * pi / 4
    return GAUSSIAN_RADIUS * torch.stack((angles.cos(), angles.sin()), -1)


def _draw_eight_gaussians(generator: np.random.Generator, n: int) -> np.ndarray:
    centres = _gaussian_centres().numpy()[generator.integers(0, 8, n)]
    return centres + GAUSSIAN_DEVIATION * generator.standard_normal((n, 2))


def _eight_gaussians(points: Tensor) -> Tensor:
    return _log_mixture(points.double(), _gaussian_centres(), GAUSSIAN_DEVIATION, torch.full((8,), -log(8)).double())


def _draw_checkerboard(generator: np.random.Generator, n: int) -> np.ndarray:
    x = generator.uniform(-2, 2, n)
    y = generator.uniform(0, 1, n) - 2 * generator.integers(0, 2, n) + np.floor(x) % 2
    return 2 * np.stack((x, y), -1)


def _checkerboard(points: Tensor) -> Tensor:
    """Uniform on 8 squares with sides of 2."""
    cells = (points.double() / 2).floor()
    inside = (points.abs() < 4).all(1) & ((cells[:, 0] + cells[:, 1]) % 2 == 0)
    return torch.where(inside, -log(32), -torch.inf).double()


def _draw_rings(generator: np.random.Generator, n: int) -> np.ndarray:
    radii = np.array(RINGS)[generator.integers(0, len(RINGS), n)]
    angles = generator.uniform(0, 2 * pi, n)
    circles = radii[:, None] * np.stack((np.cos(angles), np.sin(angles)), -1)
    return circles + RING_NOISE * generator.standard_normal((n, 2))


def _rings(points: Tensor) -> Tensor:
    """A circle of radius R with normal noise: ``exp(-(r^2 + R^2) / 2 s^2) I0(r R / s^2) / 2 pi s^2``, averaged."""
    r, radii = points.double().norm(dim=1, keepdim=True), torch.tensor(RINGS, dtype=torch.float64)
    variance = RING_NOISE**2
    each = torch.special.i0e(r * radii / variance).log() - (r - radii).square() / (2 * variance)
    return each.logsumexp(1) - log(len(RINGS) * 2 * pi * variance)


def _draw_pinwheel(generator: np.random.Generator, n: int) -> np.ndarray:
    """Johnson et al. 2016: stretched Gaussians, turned by an angle that grows with the distance along the arm."""
    features = generator.standard_normal((n, 2)) * (0.3, 0.1) + (1, 0)
    angles = 2 * pi / ARMS * generator.integers(0, ARMS, n) + 0.25 * np.exp(features[:, 0])
    cosine, sine = np.cos(angles), np.sin(angles)
    turned = (cosine * features[:, 0] - sine * features[:, 1], sine * features[:, 0] + cosine * features[:, 1])
    return 2 * np.stack(turned, -1)


def _draw_two_spirals(generator: np.random.Generator, n: int) -> np.ndarray:
    angles = 3 * pi * np.sqrt(generator.uniform(0, 1, n))
    arm = np.stack((-np.cos(angles) * angles, np.sin(angles) * angles), -1) + generator.uniform(0, 0.5, (n, 2))
    side = generator.choice([-1, 1], n)[:, None]
    return side * arm / 3 + 0.1 * generator.standard_normal((n, 2))


def _log_mixture(points: Tensor, centres: Tensor, deviation: float, log_weights: Tensor) -> Tensor:
    """Log-density ``[N]`` of isotropic Gaussians at ``centres`` ``[K, 2]``."""
    square = (points[:, None] - centres).square().sum(-1)
    return (log_weights - square / (2 * deviation**2)).logsumexp(1) - log(2 * pi * deviation**2)


TOYS = {
    "two_moons": Toy(_draw_two_moons, _two_moons),
    "eight_gaussians": Toy(_draw_eight_gaussians, _eight_gaussians),
    "checkerboard": Toy(_draw_checkerboard, _checkerboard),
    "rings": Toy(_draw_rings, _rings),
    "pinwheel": Toy(_draw_pinwheel),
    "two_spirals": Toy(_draw_two_spirals),
}
