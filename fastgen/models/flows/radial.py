"""Radial flows (Rezende & Mohamed 2015, "Variational inference with normalizing flows")."""

from __future__ import annotations

from dataclasses import dataclass

from fastgen.models.flows.posterior_flow import PosteriorFlow, PosteriorFlowConfig
from fastgen.models.registry import register
from fastgen.nn.posterior.radial import Radial


@dataclass(frozen=True)
class RadialFlowConfig(PosteriorFlowConfig):
    """The defaults are as long a flow as the paper's longest of the plane."""


@register("radial", presets={"tiny": {"length": 16}})
class RadialFlow(PosteriorFlow):
    """Radial layers, ``y = x + beta (x - c) / (alpha + |x - c|)``, and a diagonal Gaussian at the side of the noise.

    ``forward(x, context=None)`` maps x [N, *event_shape] to (z [N, D], log_det [N]); ``inverse`` maps back. Which of
    them is the paper's formula says ``closed_form``: "forward" by default, for training by maximum likelihood;
    "inverse" for the paper's use, a posterior that is sampled with its density. The other one is in closed form, too, a
    quadratic's root. Inside a variational autoencoder use the layer, ``fastgen.nn.Radial(D, amortized=True)``, with
    parameters of the encoder.
    """

    Config = RadialFlowConfig
    config: RadialFlowConfig

    def layer(self, i: int, features: int, amortized: bool) -> Radial:
        return Radial(features, amortized=amortized)
