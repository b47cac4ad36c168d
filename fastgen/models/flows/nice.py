"""NICE (Dinh, Krueger & Bengio 2014, "NICE: non-linear independent components estimation")."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from fastgen.models.flows.base import FlowConfig, FlowModel
from fastgen.models.registry import register
from fastgen.nn import MLP, AdditiveCoupling, Flatten, FlowSequential, Permutation
from fastgen.nn.flow.flow_layer import FlowLayer, no_log_det


@dataclass(frozen=True)
class NICEConfig(FlowConfig):
    """The defaults are the paper's for MNIST."""

    event_shape: tuple[int, ...] = (1, 28, 28)
    levels: int = 256
    base: str = "logistic"
    couplings: int = 4
    hidden_layers: int = 5
    hidden: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "couplings", "hidden_layers", "hidden")
        if prod(self.event_shape) < 2:
            raise ValueError(f"event_shape must have 2 numbers at least, to be split, got {self.event_shape}")


class DiagonalScaling(FlowLayer):
    """``z = x exp(log_scale)`` for each feature: the last layer of NICE."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.log_scale.exp(), no_log_det(x) + self.log_scale.sum()

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z * (-self.log_scale).exp(), no_log_det(z) - self.log_scale.sum()


@register(
    "nice",
    presets={"tiny": {"event_shape": (1, 8, 8), "levels": 17, "hidden_layers": 2, "hidden": 128}},
)
class NICE(FlowModel):
    """NICE: additive couplings of the even and the odd numbers of an event in turn, a learned scale, a logistic base.

    ``forward(x, context=None)`` maps x [N, *event_shape] to (z [N, D], log_det [N]); ``inverse`` maps back. For levels
    x is (v + u) / levels.
    """

    Config = NICEConfig
    config: NICEConfig

    def __init__(self, config: NICEConfig | None = None) -> None:
        super().__init__(config)
        config, features = self.config, prod(self.config.event_shape)
        even, odd = range(0, features, 2), range(1, features, 2)
        layers: list[nn.Module] = [Flatten(config.event_shape), Permutation([*even, *odd])]
        for i in range(config.couplings):
            swap = i % 2 == 1
            kept, changed = (len(odd), len(even)) if swap else (len(even), len(odd))
            hidden = [config.hidden] * config.hidden_layers
            layers.append(
                AdditiveCoupling(MLP(kept, changed, hidden, context_features=config.context_features), swap=swap)
            )
        self.flow = FlowSequential(*layers, DiagonalScaling(features))
