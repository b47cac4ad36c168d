"""RealNVP (Dinh, Sohl-Dickstein & Bengio 2017, "Density estimation using Real NVP")."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from fastgen.models.flows.base import FlowModel
from fastgen.models.flows.dequantized import TINY, DequantizedFlowConfig
from fastgen.models.registry import register
from fastgen.nn import (
    MLP,
    AffineCoupling,
    ConvResNet,
    FlowBatchNorm,
    FlowSequential,
    Logit,
    MultiScale,
    Squeeze2d,
    checkerboard_mask,
)


@dataclass(frozen=True)
class RealNVPConfig(DequantizedFlowConfig):
    """The defaults are the paper's for CIFAR-10; what is of vectors is not in the paper."""

    event_shape: tuple[int, ...] = (3, 32, 32)
    levels: int = 256
    alpha: float = 0.05
    """``alpha`` of the logit that discrete data go through first."""
    batch_norm: bool = True
    """Normalise after every coupling."""
    hidden: int = 64
    """Channels of the networks of the first scale, doubled by every squeeze; of vectors, the width of hidden layers."""
    scales: int = 2
    """Scales of images."""
    blocks: int = 8
    """Residual blocks of a network, for images."""
    couplings: int = 6
    """Couplings of vectors."""
    hidden_layers: int = 2
    """Hidden layers of a network, for vectors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "hidden", "scales", "blocks", "couplings", "hidden_layers")
        if len(self.event_shape) not in (1, 3) or prod(self.event_shape) < 2:
            raise ValueError(
                "event_shape must be (channels, height, width) or (features,), of 2 numbers or more, got "
                f"{self.event_shape}"
            )
        factor = 2 ** (self.scales - 1)
        if any(size % factor for size in self.event_shape[1:]):
            raise ValueError(
                f"event_shape must have a height and a width that are multiples of {factor} (scales={self.scales} "
                f"halve them {self.scales - 1} times), got {self.event_shape}"
            )


@register(
    "realnvp",
    presets={"tiny": {"event_shape": (1, 8, 8), "levels": 17, "hidden": 16, "blocks": 1, **TINY}},
)
class RealNVP(FlowModel):
    """RealNVP: affine couplings ``x exp(scale tanh(h)) + t``, each followed by batch normalisation.

    At each scale an image goes through three couplings with checkerboard masks, a squeeze, and three couplings of
    channels; then half of the channels is final. The last scale has four couplings with checkerboard masks. A vector
    goes through couplings of its two halves in turn. Discrete data go through a logit first.

    ``forward(x, context=None)`` maps x [N, *event_shape] to (z [N, D], log_det [N]); ``inverse`` maps back. For levels
    x is (v + u) / levels.

    Example:
        >>> model = RealNVP(RealNVPConfig((1, 8, 8), hidden=8, blocks=1, vector=3))
        >>> model.sample(3, seed=0, context=torch.randn(3, 3)).shape
        torch.Size([3, 1, 8, 8])
    """

    Config = RealNVPConfig
    config: RealNVPConfig

    def __init__(self, config: RealNVPConfig | None = None) -> None:
        super().__init__(config)
        layers: list[nn.Module] = [Logit(self.config.alpha)] if self.config.levels else []
        layers += [self._image_flow()] if len(self.config.event_shape) == 3 else self._vector_layers()
        self.flow = FlowSequential(*layers)
        self.dequantization = self.config.make_dequantization()

    def _vector_layers(self) -> list[nn.Module]:
        config, (features,) = self.config, self.config.event_shape
        layers: list[nn.Module] = []
        for i in range(config.couplings):
            swap = i % 2 == 1
            changed = features - features // 2 if swap else features // 2
            net = MLP(
                features - changed,
                2 * changed,
                [config.hidden] * config.hidden_layers,
                context_features=config.context_features,
                zero=True,
            )
            layers += self._normalised(features, _coupling(net, changed, swap=swap))
        return layers

    def _image_flow(self) -> nn.Module:
        (channels, height, width), hidden = self.config.event_shape, self.config.hidden
        scales, shapes = [], []
        for _ in range(self.config.scales - 1):
            layers = self._checkerboards(3, channels, height, width, hidden)
            channels, height, width, hidden = 4 * channels, height // 2, width // 2, 2 * hidden
            layers.append(Squeeze2d("realnvp"))
            for i in range(3):
                net = self._network(channels // 2, channels, hidden)
                layers += self._normalised(channels, _coupling(net, channels // 2, swap=i % 2 == 1))
            scales.append(FlowSequential(*layers))
            shapes.append((channels, height, width))
            channels //= 2
        scales.append(FlowSequential(*self._checkerboards(4, channels, height, width, hidden)))
        return MultiScale(scales, [*shapes, (channels, height, width)])

    def _checkerboards(self, count: int, channels: int, height: int, width: int, hidden: int) -> list[nn.Module]:
        layers = []
        for i in range(count):
            net = self._network(channels, 2 * channels, hidden)
            mask = checkerboard_mask(height, width, flip=i % 2 == 1)
            layers += self._normalised(channels, _coupling(net, channels, mask=mask))
        return layers

    def _network(self, inputs: int, outputs: int, hidden: int) -> nn.Module:
        return ConvResNet(inputs, outputs, hidden, self.config.blocks, context_features=self.config.context_features)

    def _normalised(self, channels: int, coupling: nn.Module) -> list[nn.Module]:
        return [coupling, FlowBatchNorm(channels)] if self.config.batch_norm else [coupling]


def _coupling(net: nn.Module, channels: int, **form) -> nn.Module:
    return AffineCoupling(net, parameterisation="tanh", scale=nn.Parameter(torch.ones(channels)), **form)
