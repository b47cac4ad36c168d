"""Cubic-spline flows (Durkan, Bekasov, Murray & Papamakarios 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from fastgen.models.flows.neural_spline import NeuralSplineCoupling, NeuralSplineCouplingConfig
from fastgen.models.registry import register


@dataclass(frozen=True)
class CubicSplineFlowConfig(NeuralSplineCouplingConfig):
    """A ``NeuralSplineCouplingConfig`` of cubic splines, without splines on what is kept."""

    transform: str = "cubic"
    unconditional: bool = False


@register("cubic_spline", presets=NeuralSplineCoupling.presets)
class CubicSplineFlow(NeuralSplineCoupling):
    """Linear maps by LU factors and couplings of monotone cubic splines in turn; else a ``NeuralSplineCoupling``.

    Of autoregressive layers it is ``NeuralSplineAutoregressive`` with ``transform="cubic"``.
    """

    Config = CubicSplineFlowConfig
    config: CubicSplineFlowConfig
