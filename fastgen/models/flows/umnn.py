"""UMNN-MAF (Wehenkel & Louppe 2019, "Unconstrained monotonic neural networks")."""

from __future__ import annotations

from dataclasses import dataclass

from fastgen.models.flows.autoregressive import AutoregressiveConfig, AutoregressiveFlow
from fastgen.models.registry import register
from fastgen.nn import MonotoneIntegral


@dataclass(frozen=True)
class UMNNConfig(AutoregressiveConfig):
    """The defaults are those of the authors' code for MINIBOONE."""

    embedding: int = 30
    """Numbers that the conditioner gives for each feature."""
    integrand: tuple[int, ...] = (50, 50, 50, 50)
    """Widths of the hidden layers of the network that is integrated."""
    intervals: int = 50
    """Intervals of the quadrature."""
    min_derivative: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "embedding", "intervals")


@register(
    "umnn",
    presets={
        "tiny": {
            "event_shape": (2,),
            "layers": 2,
            "hidden": (64, 64),
            "embedding": 8,
            "integrand": (32, 32),
            "intervals": 20,
        }
    },
)
class UMNN(AutoregressiveFlow):
    """UMNN-MAF: autoregressive layers of integrals of positive networks, ``MonotoneIntegral``.

    ``forward`` and ``inverse`` are those of ``AutoregressiveFlow``.
    """

    Config = UMNNConfig
    config: UMNNConfig

    def transform(self) -> MonotoneIntegral:
        config = self.config
        return MonotoneIntegral(
            config.embedding, config.integrand, intervals=config.intervals, min_derivative=config.min_derivative
        )
