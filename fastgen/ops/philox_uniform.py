"""Counter-based uniform noise: the same bits on every device, for every batch size and in every order of evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.arguments import check_device
from fastgen.ops.registry import Op
from fastgen.reference import philox_uniform as reference


def _fake(seed: int, samples: Tensor, positions: Tensor, channel: int, draw: int) -> Tensor:
    return samples.new_empty((samples.shape[0], positions.shape[0]), dtype=torch.float64)


OP = Op(
    "philox_uniform(int seed, Tensor samples, Tensor positions, int channel, int draw) -> Tensor",
    reference=reference.philox_uniform,
    fake=_fake,
    not_differentiable="its arguments are integers",
)


@torch.library.register_vmap("fastgen::philox_uniform")
def _vmap(info, in_dims, seed: int, samples: Tensor, positions: Tensor, channel: int, draw: int) -> tuple[Tensor, int]:
    _, samples_dim, positions_dim, _, _ = in_dims
    if positions_dim is None:
        samples = samples.movedim(samples_dim, 0)
        noise = OP(seed, samples.flatten(), positions, channel, draw)
        return noise.unflatten(0, samples.shape), 0
    positions = positions.movedim(positions_dim, 0)
    if samples_dim is None:
        noise = OP(seed, samples, positions.flatten(), channel, draw)
        return noise.unflatten(1, positions.shape), 1
    rows = zip(samples.movedim(samples_dim, 0).unbind(), positions.unbind(), strict=True)
    return torch.stack([OP(seed, s, p, channel, draw) for s, p in rows]), 0


def philox_uniform(seed: int, samples: Tensor, positions: Tensor, channel: int, draw: int) -> Tensor:
    """Uniform noise for (seed, sample, position, channel, draw), from Philox4x32-10.

    Every number is a pure function of its five coordinates: ``u[b, p] = (k + 1/2) / 2**52`` with k the upper 52 bits of
    words 1 and 0 that Philox4x32-10 makes of the packed coordinates (``fastgen/reference/philox_uniform.py`` has the
    packing). It is not differentiable.

    Args:
        seed: -2**63 <= seed < 2**63.
        samples: int64 [B], sample indices, taken modulo 2**48.
        positions: int64 [P], taken modulo 2**48.
        channel: 0 <= channel < 2**16.
        draw: which of the draws at this element, 0 <= draw < 2**16.

    Returns:
        float64 [B, P], strictly between 0 and 1, bitwise the same on every backend.

    Raises:
        TypeError: samples or positions are not int64.
        ValueError: a number outside its range, a tensor that is not one-dimensional, tensors on two devices.

    Reference: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    for name, number, low, high in (
        ("seed", seed, -(1 << 63), 1 << 63),
        ("channel", channel, 0, 1 << 16),
        ("draw", draw, 0, 1 << 16),
    ):
        if not low <= number < high:
            raise ValueError(f"{name} must be at least {low} and less than {high}, got {number}")
    for name, tensor in (("samples", samples), ("positions", positions)):
        if tensor.dtype != torch.int64:
            raise TypeError(f"{name} must be torch.int64, got {tensor.dtype}")
        if tensor.ndim != 1:
            raise ValueError(f"{name} must have one dimension, got shape {tuple(tensor.shape)}")
    check_device("positions", positions, "samples", samples.device)
    return OP(seed, samples, positions, channel, draw)
