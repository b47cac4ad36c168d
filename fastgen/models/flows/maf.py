"""MAF (Papamakarios, Pavlakou & Murray 2017, "Masked autoregressive flow for density estimation")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

from torch import nn

from fastgen.models.flows.base import FlowConfig, FlowModel
from fastgen.models.registry import register
from fastgen.nn import ActNorm, Flatten, FlowBatchNorm, FlowSequential, Logit, MaskedAffineAutoregressive

NORMS: dict[str, Callable[[int], nn.Module] | None] = {
    "batch_norm": partial(FlowBatchNorm, affine=True),
    "act_norm": ActNorm,
    "none": None,
}
"""Constructors of the layers by name, from the number of features."""


@dataclass(frozen=True)
class MAFConfig(FlowConfig):
    """The defaults are those of MAF (5) for HEPMASS."""

    event_shape: tuple[int, ...] = (21,)
    layers: int = 5
    hidden: tuple[int, ...] = (512, 512)
    activation: str = "relu"
    """Activation of the hidden layers: "relu", "tanh", "sigmoid" or "elu"."""
    hidden_degrees: str = "sequential"
    """Hidden degrees of each ``MADE``: "sequential" or "random"."""
    norm: str = "batch_norm"
    """After every layer: "batch_norm", "act_norm" or "none"."""
    alpha: float = 0.05
    """``alpha`` of the logit that discrete data go through first; the paper's for CIFAR-10, with 1e-6 for MNIST."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "layers")
        self.one_of("norm", NORMS)


@register(
    "maf",
    presets={"tiny": {"event_shape": (2,), "layers": 4, "hidden": (64, 64), "activation": "tanh"}},
)
class MAF(FlowModel):
    """MAF: affine autoregressive layers, in the natural and the reversed order of an event's numbers by turns.

    ``forward(x, context=None)`` maps x [N, *event_shape] to (z [N, D], log_det [N]) in one parallel pass a layer, so
    that the density is cheap. ``inverse`` goes number by number, with ``fastgen.ops.sequential_affine``, which computes
    every hidden unit once: sampling costs about as much as the density. For levels x is (v + u) / levels,
    and goes through a logit first.
    """

    Config = MAFConfig
    config: MAFConfig

    def __init__(self, config: MAFConfig | None = None) -> None:
        super().__init__(config)
        config, features = self.config, prod(self.config.event_shape)
        layers: list[nn.Module] = [Logit(config.alpha)] if config.levels else []
        layers.append(Flatten(config.event_shape))
        norm = NORMS[config.norm]
        for i in range(config.layers):
            layers.append(
                MaskedAffineAutoregressive(
                    features,
                    config.hidden,
                    activation=config.activation,
                    order="reversed" if i % 2 else "natural",
                    hidden_degrees=config.hidden_degrees,
                    context_features=config.context_features,
                )
            )
            if norm is not None:
                layers.append(norm(features))
        self.flow = FlowSequential(*layers)
