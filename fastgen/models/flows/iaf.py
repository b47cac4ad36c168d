"""IAF (Kingma et al. 2016, "Improved variational inference with inverse autoregressive flow")."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import nn

from fastgen.models.flows.base import FlowConfig, FlowModel
from fastgen.models.registry import register
from fastgen.nn import Flatten, FlowSequential, InverseAutoregressive


@dataclass(frozen=True)
class IAFConfig(FlowConfig):
    """The defaults are the largest posterior of the paper's table for MNIST: depth 8, width 1920, 32 latents."""

    event_shape: tuple[int, ...] = (32,)
    layers: int = 8
    hidden: tuple[int, ...] = (1920, 1920)
    activation: str = "elu"
    """Activation of the hidden layers: "relu", "tanh", "sigmoid" or "elu"."""
    parameterisation: str = "sigmoid"
    """Parameterisation of the scales: "sigmoid" as in the paper, or another one of ``MaskedAffineAutoregressive``."""
    min_scale: float = 1e-3
    """Least scale of "sigmoid" and "softplus"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "layers")
        if not self.min_scale >= 0:
            raise ValueError(f"min_scale must be at least 0, got {self.min_scale}")


@register("iaf", presets={"tiny": {"event_shape": (2,), "layers": 4, "hidden": (64, 64)}})
class IAF(FlowModel):
    """IAF: inverse autoregressive layers, in the natural and the reversed order of an event's numbers by turns.

    ``inverse(z, context=None)`` maps noise to data in one parallel pass a layer, so that samples are cheap, and so is
    the density of what was sampled (``sample(n, return_log_prob=True)``). ``forward``, data to noise, goes number by
    number, with ``fastgen.ops.sequential_affine``, which computes every hidden unit once. For levels x is
    (v + u) / levels.
    """

    Config = IAFConfig
    config: IAFConfig

    def __init__(self, config: IAFConfig | None = None) -> None:
        super().__init__(config)
        config, features = self.config, prod(self.config.event_shape)
        layers: list[nn.Module] = [
            InverseAutoregressive(
                features,
                config.hidden,
                activation=config.activation,
                order="reversed" if i % 2 else "natural",
                context_features=config.context_features,
                parameterisation=config.parameterisation,
                min_scale=config.min_scale,
            )
            for i in range(config.layers)
        ]
        self.flow = FlowSequential(Flatten(config.event_shape), *layers)
