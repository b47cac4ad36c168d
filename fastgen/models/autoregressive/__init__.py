"""Autoregressive models."""

from __future__ import annotations

from fastgen.models.autoregressive.gated_pixelcnn import GatedPixelCNN, GatedPixelCNNConfig
from fastgen.models.autoregressive.pixelcnn import PixelCNN, PixelCNNConfig
from fastgen.models.autoregressive.pixelcnn_pp import PixelCNNpp, PixelCNNppConfig
from fastgen.models.autoregressive.pixelsnail import PixelSNAIL, PixelSNAILConfig
from fastgen.models.autoregressive.wavenet import WaveNet, WaveNetConfig

__all__ = [
    "GatedPixelCNN",
    "GatedPixelCNNConfig",
    "PixelCNN",
    "PixelCNNConfig",
    "PixelCNNpp",
    "PixelCNNppConfig",
    "PixelSNAIL",
    "PixelSNAILConfig",
    "WaveNet",
    "WaveNetConfig",
]
