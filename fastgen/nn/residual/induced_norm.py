"""Induced norms of linear maps: the most by which a map stretches a vector, measured in one norm before, one after."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.linalg import vector_norm

_BASIS = 12
"""Vectors of a Lanczos basis before it is begun again from the best vector in it."""

Map = Callable[[Tensor], Tensor]

CLOSED = ((1, 1), (1, 2), (1, math.inf), (2, math.inf), (math.inf, math.inf))
"""Pairs of exponents, before and after, whose norm is a maximum over the matrix's columns or rows."""

_DUAL = {1: math.inf, 2: 2, math.inf: 1}


def closed_form(weight: Tensor, domain: float, codomain: float) -> Tensor:
    """The norm of a matrix [out, in], for a pair in ``CLOSED``.

    Of a convolution [out, in, kh, kw] with zero padding and stride 1 it is the norm too if the image is as large as the
    kernel; of a smaller image it is a bound.
    """
    taps = weight.flatten(2) if weight.dim() > 2 else weight[:, :, None]
    if domain == 1:
        return vector_norm(taps, codomain, dim=(0, 2)).amax()
    return vector_norm(taps, _DUAL[domain], dim=(1, 2)).amax()


def power_steps(normal: Map, v: Tensor, count: int) -> Tensor:
    """Steps of the power method: of A = W^T W, a unit vector that W stretches at least as much as v."""
    new = v
    for _ in range(count):
        new = normal(new)
        new = new / vector_norm(new)
    return torch.where(new.isfinite().all(), new, v)  # of a map of 0 there is no direction to take


def leading_vector(normal: Map, v: Tensor, tolerance: float, limit: int) -> tuple[Tensor, float]:
    """The unit vector that W stretches most, searched from v, by Lanczos' method with restarts on A = W^T W.

    Also returned is how far from converged it is: the relative residual ``|A v - theta v| / theta``, theta = v^T A v,
    half of which bounds the relative error of the spectral norm. A v that passes at once is returned as it is.

    Args:
        normal: A; its argument has the shape of v.
        tolerance: of the residual.
        limit: products with A, about.
    """
    shape, unit = v.shape, v.flatten() / vector_norm(v)
    image, spent = normal(unit.view(shape)).flatten(), 1
    while (residual := _residual(unit, image)) > tolerance and spent < limit:
        basis, images = unit[None], image[None]
        while len(basis) < min(_BASIS, unit.numel()):
            new = images[-1]
            for _ in range(2):
                new = new - (basis @ new) @ basis
            size = vector_norm(new)
            if size <= torch.finfo(v.dtype).eps * vector_norm(images[-1]):
                break
            basis = torch.cat((basis, (new / size)[None]))
            images = torch.cat((images, normal(basis[-1].view(shape)).flatten()[None]))
            spent += 1
        if len(basis) == 1:
            break
        projected = basis @ images.t()
        weights = torch.linalg.eigh(projected + projected.t())[1][:, -1]
        unit, image = weights @ basis, weights @ images
        v = unit.view(shape)
    return v, residual


def _residual(unit: Tensor, image: Tensor) -> float:
    theta = unit @ image
    return float(vector_norm(image - theta * unit) / theta) if theta > 0 else 0.0
