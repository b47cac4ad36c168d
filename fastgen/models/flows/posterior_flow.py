"""The base of planar, radial and Sylvester flows, made as posteriors of latents that an encoder amortises."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import nn

from fastgen.models.flows.base import FlowConfig, FlowModel
from fastgen.nn import Flatten, FlowSequential, Inverse
from fastgen.nn.posterior.amortized_flow import AmortizedFlow, DiagonalAffine, LinearAmortization

DIRECTIONS = ("forward", "inverse")


@dataclass(frozen=True)
class PosteriorFlowConfig(FlowConfig):
    """``closed_form`` says which direction of the model is the layers' published formula."""

    length: int = 32
    """Number of layers."""
    closed_form: str = "forward"
    """"forward": the density of data is one pass, as maximum likelihood wants it; "inverse": a sample is, as the
    posterior of the papers is trained. The other direction is exact, too, and has gradients, but finds roots."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "length")
        self.one_of("closed_form", DIRECTIONS)


class PosteriorFlow(FlowModel):
    """A diagonal Gaussian at the side of the noise, then layers of one kind; a context gives all their parameters, by a
    linear map for each layer. A subclass has ``layer``."""

    config: PosteriorFlowConfig

    def __init__(self, config: PosteriorFlowConfig | None = None) -> None:
        super().__init__(config)
        config, features = self.config, prod(self.config.event_shape)
        size = config.context_features
        layers = [self.layer(i, features, amortized=size is not None) for i in range(config.length)]
        layers.append(DiagonalAffine(features, amortized=size is not None))
        maps: list[nn.Module] = [*layers] if size is None else [LinearAmortization(layer, size) for layer in layers]
        if config.closed_form == "inverse":
            maps = [Inverse(layer) for layer in maps]
        flat = [Flatten(config.event_shape)] if len(config.event_shape) > 1 else []
        self.flow = FlowSequential(*flat, *maps)

    def layer(self, i: int, features: int, amortized: bool) -> AmortizedFlow:
        raise NotImplementedError
