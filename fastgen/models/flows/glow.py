"""Glow (Kingma & Dhariwal 2018, "Glow: generative flow with invertible 1x1 convolutions")."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fastgen.models.flows.base import FlowModel
from fastgen.models.flows.dequantized import TINY, DequantizedFlowConfig
from fastgen.models.registry import register
from fastgen.nn import (
    AdditiveCoupling,
    AffineCoupling,
    ConvConditioner,
    FlowSequential,
    Inverse,
    InvertibleConv1x1,
    MultiScale,
    Squeeze2d,
    ZeroConv2d,
)

COUPLINGS = ("affine", "additive")


@dataclass(frozen=True)
class GlowConfig(DequantizedFlowConfig):
    """The defaults are those of the authors' CIFAR-10 model of 3.35 bits a dimension."""

    event_shape: tuple[int, ...] = (3, 32, 32)
    levels: int = 256
    scales: int = 3
    steps: int = 32
    """Steps of each scale: ActNorm, 1x1 convolution, coupling."""
    hidden: int = 512
    coupling: str = "affine"
    """"affine" or "additive"."""
    lu: bool = True
    """Learn the 1x1 convolutions by their LU factors."""
    learn_top: bool = True
    """Learn mean and scale of the last latents; with a context they are learned of it in any case."""
    edge_bias: bool = True
    """The 3x3 convolutions see where the image ends."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_image()
        self.at_least(1, "scales", "steps", "hidden")
        self.one_of("coupling", COUPLINGS)
        factor = 2**self.scales
        if any(size % factor for size in self.event_shape[1:]):
            raise ValueError(
                f"event_shape must have a height and a width that are multiples of {factor} (scales={self.scales} "
                f"halve them {self.scales} times), got {self.event_shape}"
            )


@register(
    "glow",
    presets={"tiny": {"event_shape": (1, 8, 8), "levels": 17, "scales": 2, "steps": 4, "hidden": 64, **TINY}},
)
class Glow(FlowModel):
    """Glow: at each scale a squeeze and steps of ActNorm, invertible 1x1 convolution and coupling.

    After each scale half of the channels is final, under a normal density whose mean and scale are learned of the other
    half. A class or vector in the context enters the couplings, and the densities of what is final.

    ``forward(x, context=None)`` maps x [N, C, H, W] to (z [N, D], log_det [N]); ``inverse`` maps back. For levels x is
    (v + u) / levels.

    Example:
        >>> model = Glow(GlowConfig((1, 8, 8), scales=2, steps=2, hidden=16, classes=10))
        >>> model.sample(3, seed=0, context=torch.tensor([0, 1, 2])).shape
        torch.Size([3, 1, 8, 8])
    """

    Config = GlowConfig
    config: GlowConfig

    def __init__(self, config: GlowConfig | None = None) -> None:
        super().__init__(config)
        config = self.config
        scales, shapes = [], []
        channels, height, width = config.event_shape
        for i in range(config.scales):
            channels, height, width = 4 * channels, height // 2, width // 2
            layers: list[nn.Module] = [Squeeze2d()]
            for _ in range(config.steps):
                layers += [InvertibleConv1x1(channels, lu=config.lu, act_norm=True), self._coupling(channels)]
            if i < config.scales - 1:
                layers.append(self._prior(channels // 2))
            elif config.learn_top or config.context_features:
                layers.append(self._prior(channels, top=True))
            scales.append(FlowSequential(*layers))
            shapes.append((channels, height, width))
            channels //= 2
        self.flow = MultiScale(scales, shapes)
        self.dequantization = config.make_dequantization()

    def _coupling(self, channels: int) -> nn.Module:
        affine, half = self.config.coupling == "affine", channels // 2
        net = ConvConditioner(
            half,
            2 * half if affine else half,
            self.config.hidden,
            context_features=self.config.context_features,
            edge_bias=self.config.edge_bias,
        )
        return AffineCoupling(net, parameterisation="sigmoid", interleaved=True) if affine else AdditiveCoupling(net)

    def _prior(self, channels: int, top: bool = False) -> nn.Module:
        """Standardises the second half of the channels by the first, or at the top all of them by the context alone."""
        net = ZeroConv2d(
            channels,
            2 * channels,
            context_features=self.config.context_features,
            edge_bias=self.config.edge_bias,
        )
        return Inverse(AffineCoupling(net, mask=torch.zeros(1, 1, 1) if top else None, interleaved=not top))
