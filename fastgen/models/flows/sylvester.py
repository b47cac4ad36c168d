"""Sylvester flows (van den Berg, Hasenclever, Tomczak & Welling 2018, "Sylvester normalizing flows for variational
inference")."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from fastgen.models.flows.posterior_flow import PosteriorFlow, PosteriorFlowConfig
from fastgen.models.registry import register
from fastgen.nn.posterior.sylvester import KINDS, Sylvester


@dataclass(frozen=True)
class SylvesterFlowConfig(PosteriorFlowConfig):
    """The defaults are the paper's best posterior of the 64 latents of MNIST: 16 layers, M = 32."""

    event_shape: tuple[int, ...] = (64,)
    length: int = 16
    kind: str = "orthogonal"
    """Kind of Q: "orthogonal", "householder" or "triangular"."""
    rank: int | None = None
    """M of "orthogonal"; None is 32, or D where that is less."""
    reflections: int = 8
    """Reflections of "householder"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.one_of("kind", KINDS)
        self.at_least(1, "reflections")
        features = prod(self.event_shape)
        if self.rank is not None and (self.kind != "orthogonal" or not 1 <= self.rank <= features):
            raise ValueError(f"rank must be None, or from 1 to {features} for kind 'orthogonal', got {self.rank}")


@register("sylvester", presets={"tiny": {"event_shape": (2,), "length": 8}})
class SylvesterFlow(PosteriorFlow):
    """Sylvester layers, ``y = x + Q R tanh(S Q^T x + b)``, and a diagonal Gaussian at the side of the noise.

    Q of every layer is learned ("orthogonal", "householder"), or the identity and the reversal in turn ("triangular").

    ``forward(x, context=None)`` maps x [N, *event_shape] to (z [N, D], log_det [N]); ``inverse`` maps back. Which of
    them is the paper's formula, and which finds M roots a layer, says ``closed_form``: "forward" by default, for
    training by maximum likelihood; "inverse" for the paper's use, a posterior that is sampled with its density. Inside
    a variational autoencoder use the layer, ``fastgen.nn.Sylvester(D, kind, amortized=True)``, with parameters of the
    encoder.
    """

    Config = SylvesterFlowConfig
    config: SylvesterFlowConfig

    def layer(self, i: int, features: int, amortized: bool) -> Sylvester:
        config = self.config
        rank = config.rank or min(features, 32) if config.kind == "orthogonal" else None
        return Sylvester(
            features,
            config.kind,
            rank=rank,
            reflections=config.reflections,
            reverse=i % 2 == 1,
            amortized=amortized,
        )
