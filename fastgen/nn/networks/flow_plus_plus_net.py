"""The conditioner of Flow++: gated convolutions and gated self-attention over the positions of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastgen.nn.causal.shifted_conv import GatedResnet


class GatedAttention(nn.Module):
    """Multi-head self-attention over positions, added behind a gate: [N, T, C] to [N, T, C].

    ``x + a sigmoid(b)`` with ``(a, b) = W drop(attention(x + position))``, scores divided by sqrt(C / heads).

    Args:
        channels: C, a multiple of ``heads``.
        heads: their number.
        dropout: of the attended values.

    Raises:
        ValueError: channels that are no multiple of the heads.

    Reference: Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", ICML 2019, section 3.4.

    Example:
        >>> GatedAttention(8, heads=2)(torch.randn(5, 6, 8), torch.randn(6, 8)).shape
        torch.Size([5, 6, 8])
    """

    def __init__(self, channels: int, heads: int = 4, *, dropout: float = 0.0) -> None:
        if heads < 1 or channels % heads:
            raise ValueError(f"channels must be a multiple of heads={heads}, got {channels}")
        super().__init__()
        self.heads = heads
        self.project_in, self.project_out = nn.Linear(channels, 3 * channels), nn.Linear(channels, 2 * channels)
        self.dropout = nn.Dropout(dropout)
        begin_small(self.project_out)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """x [N, T, C] and the encoding of positions, [T, C]."""
        query, key, value = self.project_in(x + position).unflatten(2, (3, self.heads, -1)).movedim(2, 0).unbind(0)
        attended = _attended(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        a, b = self.project_out(self.dropout(attended.transpose(1, 2).flatten(2))).chunk(2, 2)
        return x + a * torch.sigmoid(b)


class GatedAttentionNet(nn.Module):
    """Blocks of gated convolution and gated attention: ``forward(x, context=None)`` maps [N, C, H, W] to [N, outputs,
    H, W].

    A 3 x 3 convolution to ``filters`` channels; blocks of a gated residual convolution (3 x 3, then 1 x 1, both after
    a concat-ELU), layer norm over channels, ``GatedAttention`` and layer norm again; a 3 x 3 convolution. A learned
    encoding of positions is shared by the blocks. The context goes into the gated convolution of every block, through
    concat-ELU and a 1 x 1 convolution.

    Args:
        shape: (C, H, W) of x.
        outputs: channels that are returned; they begin with a standard deviation of about 0.1.
        filters: channels inside, a multiple of ``heads``.
        blocks: their number.
        heads: of the attention.
        context_features: channels of a context, [N, K] or a map [N, K, H, W]; None has none.
        dropout: inside the gated layers.

    Raises:
        ValueError: filters that are no multiple of the heads; an x of another shape.

    Reference: Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", ICML 2019, section 3.4 and appendix.

    Example:
        >>> GatedAttentionNet((3, 8, 4), outputs=5, filters=16, blocks=2)(torch.randn(2, 3, 8, 4)).shape
        torch.Size([2, 5, 8, 4])
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        filters: int = 96,
        blocks: int = 10,
        *,
        heads: int = 4,
        context_features: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        channels, height, width = self.shape
        self.position = nn.Parameter(0.01 * torch.randn(height * width, filters))
        self.first = nn.Conv2d(channels, filters, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(filters, heads, context_features or 0, dropout) for _ in range(blocks))
        self.last = nn.Conv2d(filters, outputs, 3, padding=1)
        begin_small(self.last)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if x.shape[1:] != self.shape:
            raise ValueError(f"x must have shape [N, {', '.join(map(str, self.shape))}], got {tuple(x.shape)}")
        context = as_map(context)
        x = self.first(x)
        for block in self.blocks:
            x = block(x, self.position, context)
        return self.last(x)


class GatedConv(GatedResnet):
    """``GatedResnet`` with convolutions that see all sides; its second is of 3 x 3, or of 1 x 1 if ``pointwise``."""

    def __init__(
        self, channels: int, context_features: int = 0, *, dropout: float = 0.0, pointwise: bool = False
    ) -> None:
        super().__init__(channels, _same_conv, context_features, dropout)
        if pointwise:
            self.conv_output = nn.Conv2d(2 * channels, 2 * channels, 1)
        begin_small(self.conv_output)


class _Block(nn.Module):
    def __init__(self, filters: int, heads: int, context_features: int, dropout: float) -> None:
        super().__init__()
        self.conv = GatedConv(filters, context_features, dropout=dropout, pointwise=True)
        self.norm1, self.norm2 = nn.LayerNorm(filters), nn.LayerNorm(filters)
        self.attention = GatedAttention(filters, heads, dropout=dropout)

    def forward(self, x: Tensor, position: Tensor, context: Tensor | None) -> Tensor:
        size = x.shape[2:]
        x = self.conv(x, context).flatten(2).transpose(1, 2)
        x = self.norm2(self.attention(self.norm1(x), position))
        return x.transpose(1, 2).unflatten(2, size)


def as_map(context: Tensor | None) -> Tensor | None:
    """A context [N, K] as the map [N, K, 1, 1], which is added to any image; a map as it is."""
    return context[:, :, None, None] if context is not None and context.dim() == 2 else context


def begin_small(layer: nn.Linear | nn.Conv2d, scale: float = 0.1) -> None:
    """Outputs with standard deviation ``scale`` for inputs with standard deviation 1, and mean 0."""
    nn.init.normal_(layer.weight, std=scale / math.sqrt(layer.weight[0].numel()))
    nn.init.zeros_(layer.bias)


def _attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention; the fused kernels have no forward-mode derivative, the plain formula has."""
    if forward_ad._current_level < 0:
        return F.scaled_dot_product_attention(query, key, value)
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value)


def _same_conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
