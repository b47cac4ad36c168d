"""PixelSNAIL (Chen, Mishra, Rohaninejad & Abbeel 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.generate.heads import DiscretizedLogisticMixture
from fastgen.models.autoregressive.base import AutoregressiveModel
from fastgen.models.base import ModelConfig
from fastgen.models.context import Condition, Context
from fastgen.models.registry import register
from fastgen.nn import (
    CausalAttention,
    DownRightShiftedConv2d,
    DownShiftedConv2d,
    GatedResnet,
    down_shift,
    right_shift,
)


@dataclass(frozen=True)
class PixelSNAILConfig(ModelConfig):
    """The defaults are the paper's for CIFAR-10."""

    event_shape: tuple[int, ...] = (3, 32, 32)
    filters: int = 256
    blocks: int = 12
    """Each is a run of gated residual blocks, then attention."""
    convolutions: int = 4
    """Gated residual blocks before each attention."""
    heads: int = 1
    key_channels: int = 16
    """Of all heads together."""
    value_channels: int = 128
    mixtures: int = 10
    dropout: float = 0.5
    classes: int = 0
    """Number of class labels that the context "class" takes; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_image()
        if self.event_shape[0] not in (1, 3):
            raise ValueError(f"event_shape must have 1 or 3 channels, got {self.event_shape}")
        self.at_least(1, "filters", "blocks", "convolutions", "heads", "key_channels", "value_channels", "mixtures")
        self.at_least(0, "classes")
        for name in ("key_channels", "value_channels"):
            if getattr(self, name) % self.heads:
                raise ValueError(f"{name} must be a multiple of heads={self.heads}, got {getattr(self, name)}")
        self.check_dropout()


class Pointwise(nn.Conv2d):
    """A convolution of one pixel, made as the shifted convolutions are."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)


class AttentionBlock(nn.Module):
    """Attends to the pixels before; the keys and values of each are made of what it sees, and of the pixel itself.

    A pixel's features h [N, F, H, W] see the pixels before it; ``seen`` [N, C, H, W] is the image with what tells its
    places apart. Returns [N, value_channels, H, W].
    """

    def __init__(self, config: PixelSNAILConfig, seen: int, places: int) -> None:
        super().__init__()
        self.keys, self.values = config.key_channels, config.value_channels
        source, query = seen + config.filters, places + config.filters
        self.source = GatedResnet(source, Pointwise, dropout=config.dropout)
        self.to_source = Pointwise(source, self.keys + self.values)
        self.query = GatedResnet(query, Pointwise, dropout=config.dropout)
        self.to_query = Pointwise(query, self.keys)
        self.attend = CausalAttention(config.heads, strict=True)

    def forward(self, h: Tensor, seen: Tensor, places: Tensor) -> Tensor:
        keys, values = self.to_source(self.source(torch.cat([seen, h], 1))).split([self.keys, self.values], 1)
        queries = self.to_query(self.query(torch.cat([places, h], 1)))
        queries, keys, values = (x.flatten(2).transpose(1, 2) for x in (queries, keys, values))
        return self.attend(queries, keys, values).transpose(1, 2).unflatten(2, h.shape[2:])


class Block(nn.Module):
    """Gated residual blocks of shifted convolutions, attention, and a gated residual block that takes both."""

    def __init__(self, config: PixelSNAILConfig, seen: int, places: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            GatedResnet(config.filters, DownRightShiftedConv2d, dropout=config.dropout)
            for _ in range(config.convolutions)
        )
        self.attention = AttentionBlock(config, seen, places)
        self.mix = GatedResnet(config.filters, Pointwise, config.value_channels, config.dropout)

    def forward(self, h: Tensor, seen: Tensor, places: Tensor, condition: Tensor | None) -> Tensor:
        for layer in self.convolutions:
            h = layer(h, None, condition)
        return self.mix(h, self.attention(h, seen, places))


@register(
    "pixelsnail",
    presets={
        "tiny": {
            "event_shape": (1, 8, 8),
            "levels": 17,
            "filters": 20,
            "blocks": 2,
            "convolutions": 2,
            "key_channels": 8,
            "value_channels": 16,
            "mixtures": 5,
            "dropout": 0.1,
        },
    },
)
class PixelSNAIL(AutoregressiveModel):
    """PixelSNAIL: blocks of gated, shifted convolutions and of attention to all pixels before.

    ``forward(x, context=None)`` takes x float [N, C, H, W] in [-1, 1] and returns the parameters of a mixture of
    discretized logistics [N, 3 M or 10 M, H, W] for M mixtures and one or three channels. Attention is strictly causal:
    a pixel attends to the pixels before it, whose keys and values may read those pixels themselves; the first attends
    to nothing and takes 0. Two channels tell every pixel its row and column, a channel of ones the image from its
    padding. The context "class" int64 [N] is added before the gate of every convolutional residual block.

    Raises:
        ValueError: a context other than the config's.
    """

    Config = PixelSNAILConfig
    config: PixelSNAILConfig

    def __init__(self, config: PixelSNAILConfig | None = None) -> None:
        super().__init__(config)
        config, c = self.config, self.config.filters
        channels = config.event_shape[0]
        self._head = DiscretizedLogisticMixture(config.mixtures, levels=config.levels, channels=channels)
        self.first_row = DownShiftedConv2d(channels + 1, c, (1, 3))
        self.first_pixel = DownRightShiftedConv2d(channels + 1, c, (2, 1))
        self.by_class = nn.Embedding(config.classes, 2 * c) if config.classes else None
        self.blocks = nn.ModuleList(Block(config, seen=channels + 3, places=2) for _ in range(config.blocks))
        self.output = Pointwise(c, (3 if channels == 1 else 10) * config.mixtures)

    @property
    def head(self) -> DiscretizedLogisticMixture:
        return self._head

    @property
    def order(self) -> str:
        return "raster"

    @property
    def conditions(self) -> dict[str, Condition]:
        return {"class": Condition(classes=self.config.classes)} if self.config.classes else {}

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        x, context = self.inputs(x, context)
        height, width = x.shape[2:]
        x = F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0)
        h = down_shift(self.first_row(x)) + right_shift(self.first_pixel(x))
        rows = torch.arange(height, dtype=x.dtype, device=x.device)[:, None] / height - 0.5
        columns = torch.arange(width, dtype=x.dtype, device=x.device) / width - 0.5
        places = torch.stack([rows.expand(height, width), columns.expand(height, width)])
        places = places.expand(x.shape[0], 2, height, width)
        seen = torch.cat([x, places], 1)
        condition = None if self.by_class is None else self.by_class(context["class"])
        for block in self.blocks:
            h = block(h, seen, places, condition)
        return self.output(F.elu(h))
