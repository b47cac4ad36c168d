"""The base of coupling layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgen.nn.flow.flow_layer import FlowLayer


class Coupling(FlowLayer):
    """A layer that keeps one part of its input, from which a network makes the parameters of a map of the other.

    A subclass has ``_transform``.
    """

    takes_context = True

    def __init__(self, net: nn.Module, mask: Tensor | None, swap: bool) -> None:
        super().__init__()
        if mask is not None and swap:
            raise ValueError("swap must be False with a mask (give 1 - mask instead), got True")
        if mask is not None and not mask.is_meta and not ((mask == 0) | (mask == 1)).all():
            raise ValueError("mask must be 1 where x is kept and 0 elsewhere, got other numbers")
        self.net, self.swap = net, swap
        self.register_buffer("mask", None if mask is None else mask != 0)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x to (y, log_det [N])."""
        return self._couple(x, context, False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y to (x, log_det [N] of that)."""
        return self._couple(y, context, True)

    def _couple(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if x.dim() < 2 or (self.mask is None and x.shape[1] < 2):
            raise ValueError(f"x must have shape [N, C, ...], to be split with C at least 2, got {tuple(x.shape)}")
        if self.mask is not None:
            self._check_mask(x.shape[1:])
            return self._transform(x, self._outputs_of(x.masked_fill(~self.mask, 0), context), inverse)
        first, second = x.tensor_split(2, 1)
        kept, changed = (second, first) if self.swap else (first, second)
        changed, log_det = self._transform(changed, self._outputs_of(kept, context), inverse)
        return torch.cat((changed, kept) if self.swap else (kept, changed), 1), log_det

    def _check_mask(self, shape: torch.Size) -> None:
        sizes = self.mask.shape
        ends = zip(reversed(sizes), reversed(shape), strict=False)
        if len(sizes) > len(shape) or any(size != 1 and size != given for size, given in ends):
            raise ValueError(f"mask must broadcast to {tuple(shape)}, the shape of a sample, got shape {tuple(sizes)}")

    def _outputs_of(self, kept: Tensor, context: Tensor | None) -> Tensor:
        return self.net(kept) if context is None else self.net(kept, context)

    def _transform(self, x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        raise NotImplementedError
