"""LipSwish, the activation of residual flows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHRINK = 1.1
"""The slope of x sigmoid(x) reaches 1.0998."""


class LipSwish(nn.Module):
    """``y = x sigmoid(b x) / 1.1`` with a learned b = softplus(beta) > 0: its slope is nowhere more than 1 in size.

    x is float of any shape. beta is a parameter [1]; a state dict that has it as a scalar, as earlier versions saved
    it, loads too.

    Reference: Chen, Behrmann, Duvenaud, Jacobsen, "Residual flows for invertible generative modeling", NeurIPS 2019.

    Example:
        >>> x = torch.linspace(-8, 8, 1001, requires_grad=True)
        >>> (slope,) = torch.autograd.grad(LipSwish()(x).sum(), x)
        >>> bool(slope.abs().max() <= 1)
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.full((1,), 0.5))  # FSDP takes no scalars

    @property
    def sharpness(self) -> Tensor:
        """b, a scalar, which changes no dtype that it meets."""
        return F.softplus(self.beta).squeeze(0)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others) -> None:
        beta = state_dict.get(f"{prefix}beta")
        if beta is not None and beta.dim() == 0:
            state_dict[f"{prefix}beta"] = beta.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.sharpness * x) / SHRINK
