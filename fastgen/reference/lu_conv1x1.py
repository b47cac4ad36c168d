"""The LU-parameterised invertible 1x1 convolution with actnorm folded in, in plain PyTorch.

Kingma, Dhariwal, "Glow: generative flow with invertible 1x1 convolutions" (2018), section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weight_of(permutation: Tensor, lower: Tensor, upper: Tensor, diagonal: Tensor) -> Tensor:
    """``P L (U + diag(diagonal))`` [C, C]; row i of P has its 1 at ``permutation[i]``."""
    unit = torch.eye(len(diagonal), dtype=lower.dtype, device=lower.device)
    return ((lower.tril(-1) + unit) @ (upper.triu(1) + diagonal.diag()))[permutation]


def solve(y: Tensor, permutation: Tensor, lower: Tensor, upper: Tensor, diagonal: Tensor, bias: Tensor) -> Tensor:
    """x of ``P L (U + diag(diagonal)) (x + bias) = y`` at every position, by two triangular solves.

    Args:
        y: [N, C, positions].
        lower, upper: [C, C], of which the part below and the part above the diagonal are used.
    """
    columns = y.transpose(0, 1)[permutation.argsort()].flatten(1)
    columns = torch.linalg.solve_triangular(lower.tril(-1), columns, upper=False, unitriangular=True)
    columns = torch.linalg.solve_triangular(upper.triu(1) + diagonal.diag(), columns, upper=True)
    x = columns.reshape(y.shape[1], y.shape[0], y.shape[2]).transpose(0, 1)
    return x.contiguous() - bias[:, None]


def lu_conv1x1(
    x: Tensor,
    permutation: Tensor,
    lower: Tensor,
    upper: Tensor,
    log_s: Tensor,
    sign: Tensor,
    bias: Tensor | None,
    log_scale: Tensor | None,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """``(y, log |det dy/dx|)``. At every one of the H W positions::

        y = P L (U + diag(sign exp(log_s))) (exp(log_scale) (x + bias))
        log |det| = H W sum(log_s + log_scale)

    Args:
        x: [N, C, ...].
        permutation: int64 [C].
        lower, upper: [C, C].
        log_s, sign: [C].
        bias, log_scale: [C], of the actnorm before the convolution.
    """
    diagonal, bias = sign * log_s.exp(), torch.zeros_like(log_s) if bias is None else bias
    log_scale = torch.zeros_like(log_s) if log_scale is None else log_scale
    columns = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    if inverse:
        scaled = upper * log_scale.exp()
        y = solve(columns, permutation, lower, scaled, diagonal * log_scale.exp(), bias)
    else:
        weight = weight_of(permutation, lower, upper, diagonal)
        y = torch.einsum("ck,nkp->ncp", weight, log_scale.exp()[:, None] * (columns + bias[:, None]))
    log_det = columns.shape[2] * (log_s + log_scale).sum()
    return y.reshape(x.shape), (-log_det if inverse else log_det).repeat(x.shape[0])


def _case(*shape: int, inverse: bool = False, actnorm: bool = True, size: float = 1.0):
    def make(generator: torch.Generator) -> dict:
        channels = shape[1]
        given = {
            "x": torch.randn(shape, generator=generator),
            "permutation": torch.randperm(channels, generator=generator),
            "lower": size * torch.randn(channels, channels, generator=generator) / channels,
            "upper": size * torch.randn(channels, channels, generator=generator) / channels,
            "log_s": 0.3 * size * torch.randn(channels, generator=generator),
            "sign": torch.randint(0, 2, (channels,), generator=generator) * 2.0 - 1,
            "inverse": inverse,
        }
        if actnorm:
            given["bias"] = torch.randn(channels, generator=generator)
            given["log_scale"] = 0.3 * size * torch.randn(channels, generator=generator)
        return given

    return make


CASES = {
    "small": _case(2, 3),
    "small inverse": _case(2, 3, 2, inverse=True),
    "small without actnorm": _case(2, 2, 2, actnorm=False),
    "small inverse without actnorm": _case(3, 2, inverse=True, actnorm=False),
    "none": _case(0, 3, 2),
    "none, inverse": _case(0, 3, 2, inverse=True),
    "no positions, inverse": _case(3, 2, 0, inverse=True),
    "one": _case(1, 1),
    "one, inverse": _case(1, 1, 1, inverse=True),
    "prime": _case(13, 7),
    "prime, inverse": _case(13, 7, inverse=True),
    "a vector and one, inverse": _case(17, 17, inverse=True),
    "image": _case(3, 6, 5, 7),
    "image, inverse": _case(3, 6, 5, 7, inverse=True),
    "more than a tile, inverse": _case(2, 5, 33, 2, inverse=True, actnorm=False),
    "many channels": _case(2, 33, 3, 3),
    "many channels, inverse": _case(3, 33, 3, 3, inverse=True),
    "large, inverse": _case(5, 12, 4, 4, inverse=True, size=3.0),
}
