"""PixelCNN++ (Salimans, Karpathy, Chen & Kingma 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.generate.heads import DiscretizedLogisticMixture
from fastgen.models.autoregressive.base import AutoregressiveModel
from fastgen.models.base import ModelConfig
from fastgen.models.context import Condition, Context, check_context
from fastgen.models.registry import register
from fastgen.nn import (
    DownRightShiftedConv2d,
    DownRightShiftedConvTranspose2d,
    DownShiftedConv2d,
    DownShiftedConvTranspose2d,
    GatedResnet,
    apply_weight_norm,
    down_shift,
    initialize_weight_norm,
    right_shift,
)

LEVELS = 3
"""The resolutions: the image's, half of it and a quarter of it."""


@dataclass(frozen=True)
class PixelCNNppConfig(ModelConfig):
    """The defaults are the paper's for CIFAR-10."""

    event_shape: tuple[int, ...] = (3, 32, 32)
    filters: int = 160
    blocks: int = 5
    """Gated residual blocks in each stream at each resolution (on the way up in size, one more after each doubling)."""
    mixtures: int = 10
    dropout: float = 0.5
    weight_norm: bool = True
    classes: int = 0
    """Number of class labels that the context "class" takes; 0: none."""
    vector: int = 0
    """Length of the context "vector"; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_image()
        channels, height, width = self.event_shape
        if channels not in (1, 3) or height % 4 or width % 4:
            raise ValueError(f"event_shape must have 1 or 3 channels, and sides divisible by 4, got {self.event_shape}")
        self.at_least(1, "filters", "blocks", "mixtures")
        self.at_least(0, "classes", "vector")
        self.check_dropout()


class Block(nn.Module):
    """One gated residual block in each stream: ``u`` sees the rows above, ``ul`` also what is to the left, and u."""

    def __init__(self, config: PixelCNNppConfig, from_encoder: bool) -> None:
        super().__init__()
        c = config.filters
        self.u = GatedResnet(c, DownShiftedConv2d, c if from_encoder else 0, config.dropout)
        self.ul = GatedResnet(c, DownRightShiftedConv2d, 2 * c if from_encoder else c, config.dropout)
        self.by_class = nn.Embedding(config.classes, 4 * c) if config.classes else None
        self.by_vector = nn.Linear(config.vector, 4 * c, bias=False) if config.vector else None
        if self.by_class is not None:
            nn.init.normal_(self.by_class.weight, std=0.05)

    def forward(
        self, u: Tensor, ul: Tensor, context: dict[str, Tensor], skips: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        condition = None
        if self.by_class is not None:
            condition = self.by_class(context["class"])
        if self.by_vector is not None:
            of_vector = self.by_vector(context["vector"])
            condition = of_vector if condition is None else condition + of_vector
        u_condition, ul_condition = (None, None) if condition is None else condition.chunk(2, dim=1)
        if skips is None:
            u = self.u(u, None, u_condition)
            return u, self.ul(ul, u, ul_condition)
        u = self.u(u, skips[0], u_condition)
        return u, self.ul(ul, torch.cat([u, skips[1]], dim=1), ul_condition)


@register(
    "pixelcnn_pp",
    presets={
        "tiny": {
            "event_shape": (1, 8, 8),
            "levels": 17,
            "filters": 24,
            "blocks": 1,
            "mixtures": 5,
            "dropout": 0.1,
        },
    },
)
class PixelCNNpp(AutoregressiveModel):
    """PixelCNN++: a discretized logistic mixture per pixel, two streams of shifted convolutions at three resolutions.

    ``forward(x, context=None)`` takes x float [N, C, H, W] in [-1, 1] and returns the mixture's parameters [N, 3 M or
    10 M, H, W] for M mixtures and one or three channels. A channel of ones tells the image from its padding. The
    shifts come after convolution and bias, so the first row (column) of the shifted streams is exactly zero.
    ``context`` is added before the gate of every residual block: "class" int64 [N] and "vector" float [N, D], those
    that the config asks for.

    Raises:
        ValueError: sides that are not divisible by 4, or a context other than the config's.
    """

    Config = PixelCNNppConfig
    config: PixelCNNppConfig

    def __init__(self, config: PixelCNNppConfig | None = None) -> None:
        super().__init__(config)
        config, c = self.config, self.config.filters
        channels = config.event_shape[0]
        self._head = DiscretizedLogisticMixture(config.mixtures, levels=config.levels, channels=channels)
        self.first_u = DownShiftedConv2d(channels + 1, c, (2, 3))
        self.first_ul_row = DownShiftedConv2d(channels + 1, c, (1, 3))
        self.first_ul_pixel = DownRightShiftedConv2d(channels + 1, c, (2, 1))
        self.encoder = nn.ModuleList(
            nn.ModuleList(Block(config, from_encoder=False) for _ in range(config.blocks)) for _ in range(LEVELS)
        )
        self.halve_u = nn.ModuleList(DownShiftedConv2d(c, c, stride=2) for _ in range(LEVELS - 1))
        self.halve_ul = nn.ModuleList(DownRightShiftedConv2d(c, c, stride=2) for _ in range(LEVELS - 1))
        self.decoder = nn.ModuleList(
            nn.ModuleList(Block(config, from_encoder=True) for _ in range(config.blocks + (level > 0)))
            for level in range(LEVELS)
        )
        self.double_u = nn.ModuleList(DownShiftedConvTranspose2d(c, c) for _ in range(LEVELS - 1))
        self.double_ul = nn.ModuleList(DownRightShiftedConvTranspose2d(c, c) for _ in range(LEVELS - 1))
        self.output = nn.Conv2d(c, (3 if channels == 1 else 10) * config.mixtures, 1)
        if config.weight_norm:
            apply_weight_norm(self)
            with torch.no_grad():
                for layer, scale in self._initial_scales().items():
                    layer.get_parameter("parametrizations.weight.original0").fill_(scale)

    @property
    def head(self) -> DiscretizedLogisticMixture:
        return self._head

    @property
    def order(self) -> str:
        return "raster"

    @property
    def conditions(self) -> dict[str, Condition]:
        config = self.config
        by_class = {"class": Condition(classes=config.classes)} if config.classes else {}
        return by_class | ({"vector": Condition((config.vector,))} if config.vector else {})

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        if x.shape[2] % 4 or x.shape[3] % 4:
            raise ValueError(f"x must have sides that 4 divides, got shape {tuple(x.shape)}")
        x, context = self.inputs(x, context)
        x = F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0)
        u = down_shift(self.first_u(x))
        ul = down_shift(self.first_ul_row(x)) + right_shift(self.first_ul_pixel(x))
        passed = [(u, ul)]
        for level, blocks in enumerate(self.encoder):
            if level:
                u, ul = self.halve_u[level - 1](u), self.halve_ul[level - 1](ul)
                passed.append((u, ul))
            for block in blocks:
                u, ul = block(u, ul, context)
                passed.append((u, ul))
        u, ul = passed.pop()
        for level, blocks in enumerate(self.decoder):
            if level:
                u, ul = self.double_u[level - 1](u), self.double_ul[level - 1](ul)
            for block in blocks:
                u, ul = block(u, ul, context, passed.pop())
        return self.output(F.elu(ul))

    def initialize(self, levels: Tensor, context: Context = None) -> None:
        """Sets scales and biases of weight normalisation by one batch of levels, if the config has it.

        Raises:
            ValueError: the context is wrong.
        """
        if not self.config.weight_norm:
            return
        check_context(context, self.conditions, levels.shape[0])
        x = self.head.to_input(levels)
        initialize_weight_norm(self, lambda: self(x, context), self._initial_scales())

    def _initial_scales(self) -> dict[nn.Module, float]:
        return {block.conv_output: 0.1 for block in self.modules() if isinstance(block, GatedResnet)}
