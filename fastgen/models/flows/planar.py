"""Planar flows (Rezende & Mohamed 2015, "Variational inference with normalizing flows")."""

from __future__ import annotations

from dataclasses import dataclass

from fastgen.models.flows.posterior_flow import PosteriorFlow, PosteriorFlowConfig
from fastgen.models.registry import register
from fastgen.nn.posterior.planar import Planar


@dataclass(frozen=True)
class PlanarFlowConfig(PosteriorFlowConfig):
    """The defaults are the longest flow of the paper's experiment on densities of the plane; its posteriors of 40
    latents of MNIST have lengths of 10 to 80."""


@register("planar", presets={"tiny": {"length": 16}})
class PlanarFlow(PosteriorFlow):
    """Planar layers, ``y = x + u tanh(w.x + b)``, and a diagonal Gaussian at the side of the noise.

    ``forward(x, context=None)`` maps x [N, *event_shape] to (z [N, D], log_det [N]); ``inverse`` maps back. Which of
    them is the paper's formula, and which finds one root a layer, says ``closed_form``: "forward" by default, for
    training by maximum likelihood; "inverse" for the paper's use, a posterior that is sampled with its density. Inside
    a variational autoencoder use the layer, ``fastgen.nn.Planar(D, amortized=True)``, with parameters of the encoder.
    """

    Config = PlanarFlowConfig
    config: PlanarFlowConfig

    def layer(self, i: int, features: int, amortized: bool) -> Planar:
        return Planar(features, amortized=amortized)
