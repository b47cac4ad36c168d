"""The affine map of a coupling layer, in plain PyTorch.

Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP" (2017); Kingma, Dhariwal, "Glow" (2018).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PARAMETERISATIONS = ("exp", "tanh", "sigmoid")
"""Parameterisations in the order in which the kernels number them."""


def affine_coupling(
    x: Tensor,
    parameters: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    inverse: bool,
    parameterisation: int,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    """``(y, log |det dy/dx|)``. With t the shift and h the other half of the parameters::

        exp:      y = x exp(h) + t
        tanh:     y = x exp(scale tanh(h)) + t
        sigmoid:  y = (x + t) sigmoid(h + 2)

    Args:
        x: [N, C, ...].
        parameters: [N, 2 C, ...]: t then h, or t and h of channel 0, of channel 1, ... where interleaved.
        scale: [C]; only "tanh" reads it.
        mask: uint8 of one sample's shape [C, ...]; not 0 where x is kept.
        parameterisation: index in ``PARAMETERISATIONS``.
    """
    shift, raw = (parameters[:, 0::2], parameters[:, 1::2]) if interleaved else parameters.chunk(2, 1)
    if mask is not None:  # before anything else: a value that is not used must not spoil the gradient
        shift, raw = shift.masked_fill(mask != 0, 0), raw.masked_fill(mask != 0, 0)
    sigmoid = parameterisation == PARAMETERISATIONS.index("sigmoid")
    if sigmoid:
        log_scale = F.logsigmoid(raw + 2)
    elif parameterisation == PARAMETERISATIONS.index("tanh"):
        log_scale = scale.reshape(-1, *[1] * (x.dim() - 2)) * raw.tanh()
    else:
        log_scale = raw
    if inverse:
        y = x * (1 + (-raw - 2).exp()) - shift if sigmoid else (x - shift) * (-log_scale).exp()
        log_scale = -log_scale
    else:
        y = (x + shift) * (raw + 2).sigmoid() if sigmoid else x * log_scale.exp() + shift
    if mask is not None:
        y, log_scale = torch.where(mask != 0, x, y), log_scale.masked_fill(mask != 0, 0)
    return y, log_scale.flatten(1).sum(1)


def affine_coupling_(x: Tensor, *arguments) -> Tensor:
    """Writes y over x and returns the log-determinant."""
    y, log_det = affine_coupling(x, *arguments)
    x.copy_(y)
    return log_det


def _case(
    *shape: int,
    parameterisation: str = "exp",
    inverse: bool = False,
    interleaved: bool = False,
    mask: bool = False,
    size: float = 1.0,
):
    def make(generator: torch.Generator) -> dict:
        given = {
            "x": torch.randn(shape, generator=generator),
            "parameters": size * torch.randn(shape[0], 2 * shape[1], *shape[2:], generator=generator),
            "parameterisation": parameterisation,
            "inverse": inverse,
            "interleaved": interleaved,
        }
        if parameterisation == "tanh":
            given["scale"] = 0.5 + torch.rand(shape[1], generator=generator)
        if mask:
            given["mask"] = torch.rand(shape[1:], generator=generator) < 0.5
        return given

    return make


CASES = {
    "small": _case(2, 3),
    "small tanh inverse": _case(2, 2, 2, parameterisation="tanh", inverse=True),
    "small tanh interleaved": _case(2, 3, parameterisation="tanh", interleaved=True),
    "small sigmoid": _case(2, 2, 2, parameterisation="sigmoid", interleaved=True),
    "small sigmoid inverse, masked": _case(2, 3, parameterisation="sigmoid", inverse=True, mask=True),
    "none": _case(0, 3, 2, parameterisation="tanh"),
    "no positions": _case(3, 2, 0),
    "one": _case(1, 1, parameterisation="tanh"),
    "prime": _case(13, 7, parameterisation="sigmoid"),
    "a vector and one": _case(3, 17, inverse=True),
    "image": _case(3, 6, 5, 7, parameterisation="tanh"),
    "image, inverse, masked": _case(3, 6, 5, 7, parameterisation="tanh", inverse=True, mask=True, interleaved=True),
    "more than a chunk": _case(2, 3, 33, 65, mask=True),
    "interleaved image, inverse": _case(2, 4, 8, 8, parameterisation="exp", inverse=True, interleaved=True),
    "large sigmoid": _case(5, 33, parameterisation="sigmoid", size=10.0),
    "large tanh": _case(5, 33, parameterisation="tanh", size=10.0, mask=True),
}
