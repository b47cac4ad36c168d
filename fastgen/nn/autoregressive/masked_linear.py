"""A linear map some of whose weights are not there."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class MaskedLinear(nn.Linear):
    """``nn.Linear`` that uses only the weights where ``mask`` is not 0.

    The others, which must be finite, change nothing and get no gradient.

    Args:
        mask: [out_features, in_features], 0 and 1 or bool. It is a buffer of 0 and 1 of the weight's dtype, and part of
            the state.
        bias: whether there is one.

    Raises:
        ValueError: mask does not have two dimensions.

    Example:
        >>> import torch
        >>> layer = MaskedLinear(torch.ones(3, 3).tril(-1))
        >>> bool((layer(torch.randn(5, 3))[:, 0] == layer.bias[0]).all())
        True
    """

    def __init__(self, mask: Tensor, bias: bool = True) -> None:
        if mask.dim() != 2:
            raise ValueError(f"mask must have shape [out_features, in_features], got {tuple(mask.shape)}")
        super().__init__(mask.shape[1], mask.shape[0], bias)
        self.register_buffer("mask", (mask != 0).to(self.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        return F.linear(x, self.weight * self.mask, self.bias)
