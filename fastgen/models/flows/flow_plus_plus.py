"""Flow++ (Ho, Chen, Srinivas, Duan & Abbeel 2019, "Flow++: improving flow-based generative models with variational
dequantization and architecture design")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fastgen.models.flows.base import FlowModel
from fastgen.models.flows.dequantized import TINY, DequantizedFlowConfig
from fastgen.models.registry import register
from fastgen.nn import (
    CheckerboardSplit,
    Flatten,
    FlowPlusPlusStep,
    FlowSequential,
    Inverse,
    Logit,
    Squeeze2d,
)


@dataclass(frozen=True)
class FlowPlusPlusConfig(DequantizedFlowConfig):
    """The defaults are the paper's for CIFAR-10."""

    event_shape: tuple[int, ...] = (3, 32, 32)
    levels: int = 256
    alpha: float = 0.05
    """Data with levels, in [0, 1), are squeezed into [alpha, 1 - alpha) before their logit is taken."""
    couplings: tuple[int, int, int] = (4, 2, 3)
    """On a checkerboard of the image, on the halves of the squeezed channels, on a checkerboard of the squeezed."""
    filters: int = 96
    blocks: int = 10
    components: int = 32
    """Logistics in a mixture."""
    heads: int = 4
    dropout: float = 0.2
    dequantization: str = "variational"
    dequantization_dropout: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_image()
        if self.event_shape[1] % 2 or self.event_shape[2] % 4:
            raise ValueError(f"event_shape must have an even height and a width that 4 divides, got {self.event_shape}")
        if len(self.couplings) != 3 or min(self.couplings) < 0 or not any(self.couplings):
            raise ValueError(f"couplings must be three numbers of 0 or more, not all 0, got {self.couplings}")
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"alpha must be greater than 0 and less than 0.5, got {self.alpha}")
        self.at_least(1, "filters", "blocks", "components", "heads")
        if self.filters % self.heads:
            raise ValueError(f"filters must be a multiple of heads={self.heads}, got {self.filters}")
        self.check_dropout()


@register(
    "flow_plus_plus",
    presets={
        "tiny": {
            "event_shape": (1, 8, 8),
            "levels": 17,
            "couplings": (2, 2, 2),
            "filters": 32,
            "blocks": 1,
            "components": 4,
            "dropout": 0.0,
            "dequantization_dropout": 0.0,
            **TINY,
        }
    },
)
class FlowPlusPlus(FlowModel):
    """Flow++: couplings by mixtures of logistics with attention in their networks, and variational dequantization.

    ``forward(x, context=None)`` maps x [N, C, H, W] to (z [N, D], log_det [N]); ``inverse`` maps back. For levels x is
    (v + u) / levels, with u drawn by a flow of its own, conditioned on v. The authors' code splits an image into its
    even and its odd columns; here the split is a checkerboard, as in the paper.
    """

    Config = FlowPlusPlusConfig
    config: FlowPlusPlusConfig

    def __init__(self, config: FlowPlusPlusConfig | None = None) -> None:
        super().__init__(config)
        config = self.config
        channels, height, width = config.event_shape
        squeezed = (4 * channels, height // 2, width // 2)
        checkerboard, halves, squeezed_checkerboard = config.couplings
        self.flow = FlowSequential(
            *([Logit(config.alpha)] if config.levels else []),
            *self._on_checkerboard(config.event_shape, checkerboard),
            Squeeze2d(),
            *self._steps(squeezed, halves),
            *self._on_checkerboard(squeezed, squeezed_checkerboard),
            Flatten(squeezed),
        )
        self.dequantization = config.make_dequantization()

    def _on_checkerboard(self, shape: Sequence[int], count: int) -> list[nn.Module]:
        channels, height, width = shape
        split = CheckerboardSplit()
        return [split, *self._steps((2 * channels, height, width // 2), count), Inverse(split)]

    def _steps(self, shape: Sequence[int], count: int) -> list[nn.Module]:
        config = self.config
        return [
            FlowPlusPlusStep(
                shape,
                config.filters,
                config.blocks,
                config.components,
                heads=config.heads,
                context_features=config.context_features,
                dropout=config.dropout,
                swap=i % 2 == 1,
            )
            for i in range(count)
        ]
