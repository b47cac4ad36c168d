"""PixelCNN (van den Oord, Kalchbrenner & Kavukcuoglu 2016a, "Pixel recurrent neural networks")."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.generate.heads import Categorical
from fastgen.models.autoregressive.base import AutoregressiveModel
from fastgen.models.base import ModelConfig
from fastgen.models.context import Context
from fastgen.models.registry import register
from fastgen.nn import MaskedConv2d


@dataclass(frozen=True)
class PixelCNNConfig(ModelConfig):
    """The defaults are the paper's for CIFAR-10."""

    event_shape: tuple[int, ...] = (3, 32, 32)
    layers: int = 15
    """Residual blocks."""
    channels: int = 128
    """h: a residual block has 2h channels outside and h inside."""
    kernel_size: int = 3
    first_kernel_size: int = 7
    head_channels: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_image()
        self.at_least(1, "layers")
        self.at_least(self.event_shape[0], "channels", "head_channels")
        for name in ("kernel_size", "first_kernel_size"):
            if getattr(self, name) < 1 or getattr(self, name) % 2 == 0:
                raise ValueError(f"{name} must be odd and positive, got {getattr(self, name)}")


class ResidualBlock(nn.Module):
    """``x + conv1x1(relu(conv(relu(conv1x1(relu(x))))))``, 2h to h to h to 2h channels, all with mask B."""

    def __init__(self, channels: int, kernel_size: int, colours: int) -> None:
        super().__init__()
        self.reduce = MaskedConv2d(2 * channels, channels, 1, "B", colours=colours)
        self.conv = MaskedConv2d(channels, channels, kernel_size, "B", colours=colours)
        self.expand = MaskedConv2d(channels, 2 * channels, 1, "B", colours=colours)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(F.relu(self.conv(F.relu(self.reduce(F.relu(x))))))


@register(
    "pixelcnn",
    presets={
        "tiny": {
            "event_shape": (1, 8, 8),
            "levels": 17,
            "layers": 4,
            "channels": 24,
            "first_kernel_size": 5,
            "head_channels": 64,
        },
    },
)
class PixelCNN(AutoregressiveModel):
    """PixelCNN: masked convolutions and a softmax for every sub-pixel.

    ``forward(x)`` takes x float [N, C, H, W] in [-1, 1] and returns the logits [N, C L, H, W], channel by channel,
    for L levels. The first convolution has mask A, all others mask B; with C channels every layer splits its feature
    maps into the same C colour groups, and a sub-pixel sees the pixels before its own and, at its own, the channels
    before its own. As in the paper, pixels above and to the right lie in a blind spot (``GatedPixelCNN`` has none).

    Raises:
        ValueError: a context (the model is unconditional).
    """

    Config = PixelCNNConfig
    config: PixelCNNConfig

    def __init__(self, config: PixelCNNConfig | None = None) -> None:
        super().__init__(config)
        config, h = self.config, self.config.channels
        colours = config.event_shape[0]
        self._head = Categorical(config.levels, to_input="symmetric")
        self.first = MaskedConv2d(colours, 2 * h, config.first_kernel_size, "A", colours=colours)
        self.blocks = nn.Sequential(*(ResidualBlock(h, config.kernel_size, colours) for _ in range(config.layers)))
        self.hidden = MaskedConv2d(2 * h, config.head_channels, 1, "B", colours=colours)
        self.output = MaskedConv2d(config.head_channels, colours * config.levels, 1, "B", colours=colours)

    @property
    def head(self) -> Categorical:
        return self._head

    @property
    def order(self) -> str:
        return "raster" if self.config.event_shape[0] == 1 else "raster-subpixel"

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        x, _ = self.inputs(x, context)
        x = self.blocks(self.first(x))
        return self.output(F.relu(self.hidden(F.relu(x))))
