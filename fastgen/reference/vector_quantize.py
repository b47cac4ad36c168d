"""Nearest code of a codebook, in plain PyTorch.

van den Oord, Vinyals, Kavukcuoglu, "Neural discrete representation learning" (2017).
"""

from __future__ import annotations

import torch
from torch import Tensor


def vector_quantize(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``codes[n] = argmax_k (x[n] - c) . (e[k] - c) - |e[k] - c|^2 / 2``, the nearest code, the first of equally near
    ones. c is the mean of the codes in the coordinates where it is larger than their deviation from it, else 0.

    Args:
        x: [N, D].
        codebook: [K, D], the codes e.

    Returns:
        codes int64 [N], ``e[codes]`` [N, D], how many rows chose each code [K], and the sum of those rows [K, D].
    """
    variance, mean = torch.var_mean(codebook, 0, correction=0)
    centre = torch.where(mean.square() > variance, mean, 0)
    codes = codebook - centre
    with torch.autocast(x.device.type, enabled=False):
        nearness = (x - centre) @ codes.t() - codes.square().sum(1) / 2
    codes = nearness.argmax(1)
    counts = torch.bincount(codes, minlength=len(codebook)).to(x.dtype)
    return codes, codebook[codes], counts, torch.zeros_like(codebook).index_add(0, codes, x)


def _case(rows: int, codes: int, width: int, offset: float = 0.0):
    def make(generator: torch.Generator) -> dict:
        return {
            "x": offset + torch.randn(rows, width, generator=generator),
            "codebook": offset + torch.randn(codes, width, generator=generator),
        }

    return make


CASES = {
    "small": _case(5, 3, 2),
    "none": _case(0, 4, 3),
    "one": _case(1, 1, 1),
    "one number": _case(33, 7, 1),
    "prime": _case(127, 61, 13),
    "a tile": _case(96, 64, 64),
    "past a tile": _case(97, 65, 33),
    "many codes": _case(50, 1025, 16),
    "an offset": _case(60, 33, 7, offset=1e3),
}
