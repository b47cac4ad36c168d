"""The choice of dequantization that flows of images have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastgen.models.flows.base import FlowConfig
from fastgen.nn import VariationalDequantization

DEQUANTIZATIONS = ("variational", "uniform")

TINY: dict[str, Any] = {
    "dequantization_couplings": 2,
    "dequantization_filters": 16,
    "dequantization_blocks": 1,
    "dequantization_components": 4,
    "dequantization_features": 16,
}
"""Sizes of the dequantization in a tiny preset."""


@dataclass(frozen=True)
class DequantizedFlowConfig(FlowConfig):
    """The dequantization of levels, for images of even width; the default sizes are those of Flow++ for CIFAR-10."""

    dequantization: str = "uniform"
    """Noise added to levels: "uniform", or "variational", by a flow given the levels, with the sizes that follow."""
    dequantization_couplings: int = 4
    dequantization_filters: int = 96
    dequantization_blocks: int = 2
    dequantization_components: int = 32
    """Logistics in a mixture."""
    dequantization_heads: int = 4
    dequantization_features: int = 32
    """Channels of what the couplings see of the levels."""
    dequantization_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.one_of("dequantization", DEQUANTIZATIONS)
        for size in ("couplings", "filters", "blocks", "components", "heads", "features"):
            self.at_least(1, f"dequantization_{size}")
        if self.dequantization_filters % self.dequantization_heads:
            raise ValueError(
                f"dequantization_filters must be a multiple of dequantization_heads={self.dequantization_heads}, got "
                f"{self.dequantization_filters}"
            )
        self.check_dropout("dequantization_dropout")
        if (
            self.levels
            and self.dequantization == "variational"
            and (len(self.event_shape) != 3 or self.event_shape[2] % 2)
        ):
            raise ValueError(
                "event_shape must be (channels, height, width) with an even width, for dequantization='variational', "
                f"got {self.event_shape}"
            )

    def make_dequantization(self) -> VariationalDequantization | None:
        """The module for ``FlowModel.dequantization``; None where it is uniform, or there are no levels."""
        if not self.levels or self.dequantization == "uniform":
            return None
        return VariationalDequantization.of_images(
            self.event_shape,
            self.levels,
            couplings=self.dequantization_couplings,
            filters=self.dequantization_filters,
            blocks=self.dequantization_blocks,
            components=self.dequantization_components,
            heads=self.dequantization_heads,
            features=self.dequantization_features,
            context_features=self.context_features,
            dropout=self.dequantization_dropout,
        )
