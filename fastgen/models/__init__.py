"""The zoo: every model by name, as ``list_models()`` and ``create_model(...)`` find it."""

from __future__ import annotations

from fastgen.models.autoregressive import GatedPixelCNN, PixelCNN, PixelCNNpp, PixelSNAIL, WaveNet
from fastgen.models.base import Model, ModelConfig
from fastgen.models.flows import (
    FFJORD,
    IAF,
    MAF,
    NAF,
    NICE,
    SOS,
    UMNN,
    CubicSplineFlow,
    FlowPlusPlus,
    Glow,
    IResNet,
    NeuralSplineAutoregressive,
    NeuralSplineCoupling,
    PlanarFlow,
    RadialFlow,
    RealNVP,
    ResidualFlow,
    SylvesterFlow,
)
from fastgen.models.registry import create_model, from_pretrained, list_models, model_class

__all__ = [
    "FFJORD",
    "IAF",
    "MAF",
    "NAF",
    "NICE",
    "SOS",
    "UMNN",
    "CubicSplineFlow",
    "FlowPlusPlus",
    "GatedPixelCNN",
    "Glow",
    "IResNet",
    "Model",
    "ModelConfig",
    "NeuralSplineAutoregressive",
    "NeuralSplineCoupling",
    "PixelCNN",
    "PixelCNNpp",
    "PixelSNAIL",
    "PlanarFlow",
    "RadialFlow",
    "RealNVP",
    "ResidualFlow",
    "SylvesterFlow",
    "WaveNet",
    "create_model",
    "from_pretrained",
    "list_models",
    "model_class",
]
