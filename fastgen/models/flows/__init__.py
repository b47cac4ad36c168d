"""Normalizing flows."""

from __future__ import annotations

from fastgen.models.flows.base import FlowConfig, FlowModel
from fastgen.models.flows.nice import NICE, NICEConfig

__all__ = ["NICE", "FlowConfig", "FlowModel", "NICEConfig"]
