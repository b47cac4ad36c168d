"""Gated PixelCNN (van den Oord et al. 2016b, "Conditional image generation with PixelCNN decoders")."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.generate.heads import Categorical
from fastgen.models.autoregressive.base import AutoregressiveModel
from fastgen.models.base import ModelConfig
from fastgen.models.context import Condition, Context
from fastgen.models.registry import register
from fastgen.nn import MaskedConv2d


@dataclass(frozen=True)
class GatedPixelCNNConfig(ModelConfig):
    """The defaults are the paper's for ImageNet at 32 x 32."""

    event_shape: tuple[int, ...] = (3, 32, 32)
    layers: int = 20
    channels: int = 384
    kernel_size: int = 5
    head_channels: int = 384
    classes: int = 0
    """Number of class labels that the context "class" takes; 0: none."""
    vector: int = 0
    """Length of the context "vector", the same condition at every pixel; 0: none."""
    map: int = 0
    """Channels of the context "map" [N, map, H, W], a condition that depends on the location; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_image()
        self.at_least(1, "layers")
        self.at_least(self.event_shape[0], "channels", "head_channels")
        self.at_least(0, "classes", "vector", "map")
        if self.kernel_size < 3 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and at least 3, got {self.kernel_size}")


def gate(x: Tensor) -> Tensor:
    """``tanh(a) sigmoid(b)`` for the halves a, b of the channels."""
    a, b = x.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


class GatedLayer(nn.Module):
    """One layer of both stacks; the last one needs no vertical output, the first one has no horizontal residual."""

    def __init__(self, config: GatedPixelCNNConfig, first: bool, last: bool) -> None:
        super().__init__()
        colours, p, k = config.event_shape[0], config.channels, config.kernel_size
        source, rows = (colours, k // 2) if first else (p, k // 2 + 1)
        self.first, self.last = first, last
        self.margins = (k // 2, k // 2, k // 2, -1 if first else 0)
        self.vertical = nn.Conv2d(source, 2 * p, (rows, k))
        self.link = nn.Conv2d(2 * p, 2 * p, 1)
        self.horizontal = MaskedConv2d(source, 2 * p, (1, k), "A" if first else "B", colours=colours, parts=2)
        self.output = MaskedConv2d(p, p, 1, "B", colours=colours)
        conditioned = 2 * p if last else 4 * p
        self.by_class = nn.Embedding(config.classes, conditioned) if config.classes else None
        self.by_vector = nn.Linear(config.vector, conditioned, bias=False) if config.vector else None
        self.by_map = nn.Conv2d(config.map, conditioned, 1, bias=False) if config.map else None
        if self.by_class is not None:
            nn.init.normal_(self.by_class.weight, std=0.05)

    def forward(self, v: Tensor, h: Tensor, context: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        vertical = self.vertical(F.pad(v, self.margins))
        horizontal = self.horizontal(h) + self.link(vertical)
        for condition in self._conditions(context):
            if self.last:
                horizontal = horizontal + condition
            else:
                of_vertical, of_horizontal = condition.chunk(2, dim=1)
                vertical, horizontal = vertical + of_vertical, horizontal + of_horizontal
        out = self.output(gate(horizontal))
        return v if self.last else gate(vertical), out if self.first else h + out

    def _conditions(self, context: dict[str, Tensor]) -> list[Tensor]:
        conditions = []
        if self.by_class is not None:
            conditions.append(self.by_class(context["class"])[:, :, None, None])
        if self.by_vector is not None:
            conditions.append(self.by_vector(context["vector"])[:, :, None, None])
        if self.by_map is not None:
            conditions.append(self.by_map(context["map"]))
        return conditions


@register(
    "gated_pixelcnn",
    presets={
        "tiny": {
            "event_shape": (1, 8, 8),
            "levels": 17,
            "layers": 5,
            "channels": 32,
            "kernel_size": 3,
            "head_channels": 32,
        },
    },
)
class GatedPixelCNN(AutoregressiveModel):
    """Gated PixelCNN: a vertical and a horizontal stack, gated units, and a softmax for every sub-pixel.

    ``forward(x, context=None)`` takes x float [N, C, H, W] in [-1, 1] and returns the logits [N, C L, H, W], channel
    by channel, for L levels. The vertical stack sees the rows above only: its first convolution leaves out the
    pixel's own row, which is the one-row shift between the stacks, made once. The horizontal stack sees the row to
    the left, and the vertical stack through a 1 x 1 convolution; its first convolution has mask A and no residual
    connection. So there is no blind spot. With C channels the horizontal stack splits its feature maps into C colour
    groups.

    Context: "class" int64 [N] and "vector" float [N, D] act alike at every pixel, "map" float [N, map, H, W] location
    by location.

    Raises:
        ValueError: a context other than the config's.
    """

    Config = GatedPixelCNNConfig
    config: GatedPixelCNNConfig

    def __init__(self, config: GatedPixelCNNConfig | None = None) -> None:
        super().__init__(config)
        config = self.config
        colours, last = config.event_shape[0], config.layers - 1
        self._head = Categorical(config.levels, to_input="symmetric")
        self.layers = nn.ModuleList(GatedLayer(config, i == 0, i == last) for i in range(config.layers))
        self.hidden = MaskedConv2d(config.channels, config.head_channels, 1, "B", colours=colours)
        self.output = MaskedConv2d(config.head_channels, colours * config.levels, 1, "B", colours=colours)

    @property
    def head(self) -> Categorical:
        return self._head

    @property
    def order(self) -> str:
        return "raster" if self.config.event_shape[0] == 1 else "raster-subpixel"

    @property
    def conditions(self) -> dict[str, Condition]:
        config = self.config
        conditions = {"class": Condition(classes=config.classes)} if config.classes else {}
        if config.vector:
            conditions["vector"] = Condition((config.vector,))
        if config.map:
            conditions["map"] = Condition((config.map, None, None))
        return conditions

    def context_sizes(self, event_shape: tuple[int, ...] | None = None) -> dict[str, tuple[int, ...]]:
        sizes = super().context_sizes(event_shape)
        if self.config.map:
            sizes["map"] = (self.config.map, *(event_shape or self.config.event_shape)[1:])
        return sizes

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        x, context = self.inputs(x, context)
        if "map" in context and context["map"].shape[2:] != x.shape[2:]:
            raise ValueError(
                f"context 'map' must have the size of the image, {tuple(x.shape[2:])}, got "
                f"{tuple(context['map'].shape[2:])}"
            )
        v = h = x
        for layer in self.layers:
            v, h = layer(v, h, context)
        return self.output(F.relu(self.hidden(F.relu(h))))
