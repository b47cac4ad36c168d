"""SOS (Jaini, Selby & Yu 2019, "Sum-of-squares polynomial flow")."""

from __future__ import annotations

from dataclasses import dataclass

from fastgen.models.flows.autoregressive import AutoregressiveConfig, AutoregressiveFlow
from fastgen.models.registry import register
from fastgen.nn import SOSPolynomial


@dataclass(frozen=True)
class SOSConfig(AutoregressiveConfig):
    """The defaults are those of public code for MINIBOONE."""

    layers: int = 8
    norm: str = "batch_norm"
    polynomials: int = 5
    """Number of squares that are summed."""
    degree: int = 4
    """Degree of what is squared; the map has twice that and 1."""
    min_derivative: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "polynomials", "degree")


@register(
    "sos",
    presets={"tiny": {"event_shape": (2,), "layers": 2, "hidden": (64, 64), "polynomials": 3, "degree": 2}},
)
class SOS(AutoregressiveFlow):
    """SOS: autoregressive layers of increasing polynomials, ``SOSPolynomial``.

    ``forward`` and ``inverse`` are those of ``AutoregressiveFlow``. Polynomials grow fast: the model wants data of
    standard deviation 1 or so.
    """

    Config = SOSConfig
    config: SOSConfig

    def transform(self) -> SOSPolynomial:
        config = self.config
        return SOSPolynomial(config.polynomials, config.degree, min_derivative=config.min_derivative)
