"""Normalizing flows."""

from __future__ import annotations

from fastgen.models.flows.base import FlowConfig, FlowModel, NoSamples
from fastgen.models.flows.cubic_spline import CubicSplineFlow, CubicSplineFlowConfig
from fastgen.models.flows.ffjord import FFJORD, FFJORDConfig
from fastgen.models.flows.flow_plus_plus import FlowPlusPlus, FlowPlusPlusConfig
from fastgen.models.flows.glow import Glow, GlowConfig
from fastgen.models.flows.i_resnet import IResNet, IResNetConfig
from fastgen.models.flows.iaf import IAF, IAFConfig
from fastgen.models.flows.maf import MAF, MAFConfig
from fastgen.models.flows.naf import NAF, NAFConfig
from fastgen.models.flows.neural_spline import (
    NeuralSplineAutoregressive,
    NeuralSplineConfig,
    NeuralSplineCoupling,
    NeuralSplineCouplingConfig,
)
from fastgen.models.flows.nice import NICE, NICEConfig
from fastgen.models.flows.planar import PlanarFlow, PlanarFlowConfig
from fastgen.models.flows.radial import RadialFlow, RadialFlowConfig
from fastgen.models.flows.realnvp import RealNVP, RealNVPConfig
from fastgen.models.flows.residual_flow import ResidualFlow, ResidualFlowConfig
from fastgen.models.flows.sos import SOS, SOSConfig
from fastgen.models.flows.sylvester import SylvesterFlow, SylvesterFlowConfig
from fastgen.models.flows.umnn import UMNN, UMNNConfig

__all__ = [
    "FFJORD",
    "IAF",
    "MAF",
    "NAF",
    "NICE",
    "SOS",
    "UMNN",
    "CubicSplineFlow",
    "CubicSplineFlowConfig",
    "FFJORDConfig",
    "FlowConfig",
    "FlowModel",
    "FlowPlusPlus",
    "FlowPlusPlusConfig",
    "Glow",
    "GlowConfig",
    "IAFConfig",
    "IResNet",
    "IResNetConfig",
    "MAFConfig",
    "NAFConfig",
    "NICEConfig",
    "NeuralSplineAutoregressive",
    "NeuralSplineConfig",
    "NeuralSplineCoupling",
    "NeuralSplineCouplingConfig",
    "NoSamples",
    "PlanarFlow",
    "PlanarFlowConfig",
    "RadialFlow",
    "RadialFlowConfig",
    "RealNVP",
    "RealNVPConfig",
    "ResidualFlow",
    "ResidualFlowConfig",
    "SOSConfig",
    "SylvesterFlow",
    "SylvesterFlowConfig",
    "UMNNConfig",
]
