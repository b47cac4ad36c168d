"""The base of flows of autoregressive layers with a numeric inverse."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import nn

from fastgen.models.flows.base import FlowConfig, FlowModel
from fastgen.models.flows.maf import NORMS
from fastgen.nn import Flatten, FlowSequential, MaskedAutoregressive, MaskedMLP, MonotoneTransform, Permutation


@dataclass(frozen=True)
class AutoregressiveConfig(FlowConfig):
    """The event is that of MINIBOONE."""

    event_shape: tuple[int, ...] = (43,)
    layers: int = 5
    hidden: tuple[int, ...] = (512, 512)
    """Widths of each conditioner's hidden layers."""
    activation: str = "relu"
    """Activation of the conditioner: "relu", "tanh", "sigmoid" or "elu"."""
    norm: str = "none"
    """After every layer; the names are those of ``MAFConfig``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "layers")
        self.one_of("norm", NORMS)


class AutoregressiveFlow(FlowModel):
    """Autoregressive layers of an elementwise ``transform``, each given by a masked network of the numbers before.

    After every layer comes the norm, if there is one, and the numbers are reversed. ``forward(x, context=None)`` maps
    x [N, *event_shape] to (z [N, D], log_det [N]) in one parallel pass a layer. ``inverse`` goes number by number, and
    finds each by bisection. For levels x is (v + u) / levels.
    """

    config: AutoregressiveConfig

    def __init__(self, config: AutoregressiveConfig | None = None) -> None:
        super().__init__(config)
        config, features = self.config, prod(self.config.event_shape)
        layers: list[nn.Module] = [Flatten(config.event_shape)]
        norm = NORMS[config.norm]
        for _ in range(config.layers):
            transform = self.transform()
            conditioner = MaskedMLP(
                features,
                transform.parameters_per_element,
                config.hidden,
                activation=config.activation,
                context_features=config.context_features,
            )
            layers.append(MaskedAutoregressive(conditioner, transform))
            if norm is not None:
                layers.append(norm(features))
            layers.append(Permutation.reversed(features))
        self.flow = FlowSequential(*layers)

    def transform(self) -> MonotoneTransform:
        """A new elementwise map for one layer."""
        raise NotImplementedError
