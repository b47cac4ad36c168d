"""Layers to drop into a PyTorch model."""

from __future__ import annotations

from fastgen.nn.autoregressive.made import MADE, MaskedMLP, ResMADE
from fastgen.nn.autoregressive.masked_affine_autoregressive import InverseAutoregressive, MaskedAffineAutoregressive
from fastgen.nn.autoregressive.masked_autoregressive import MaskedAutoregressive
from fastgen.nn.autoregressive.masked_linear import MaskedLinear
from fastgen.nn.autoregressive.masked_spline_autoregressive import MaskedSplineAutoregressive
from fastgen.nn.causal.causal_attention import CausalAttention
from fastgen.nn.causal.causal_conv import CausalConv1d, GatedResidualBlock1d
from fastgen.nn.causal.masked_conv import MaskedConv2d
from fastgen.nn.causal.shifted_conv import (
    DownRightShiftedConv2d,
    DownRightShiftedConvTranspose2d,
    DownShiftedConv2d,
    DownShiftedConvTranspose2d,
    GatedResnet,
    concat_elu,
    down_shift,
    right_shift,
)
from fastgen.nn.causal.skew_lstm import DiagonalLSTM, RowLSTM
from fastgen.nn.continuous.continuous_flow import ContinuousFlow
from fastgen.nn.continuous.conv_field import ConvNetField
from fastgen.nn.continuous.hutchinson_trace import HutchinsonTrace
from fastgen.nn.continuous.mlp_field import MLPField
from fastgen.nn.continuous.ode_solver import OdeSolver, SolverLimitExceeded
from fastgen.nn.coupling.affine_coupling import AdditiveCoupling, AffineCoupling
from fastgen.nn.coupling.flow_plus_plus_step import FlowPlusPlusStep
from fastgen.nn.coupling.logistic_mixture_coupling import LogisticMixtureCoupling
from fastgen.nn.coupling.spline_coupling import SplineCoupling
from fastgen.nn.elementwise.cubic_spline import CubicSpline
from fastgen.nn.elementwise.deep_sigmoidal import DeepDenseSigmoidal, DeepSigmoidal
from fastgen.nn.elementwise.logit import Logit
from fastgen.nn.elementwise.monotone_integral import MonotoneIntegral
from fastgen.nn.elementwise.monotone_inverse import monotone_inverse
from fastgen.nn.elementwise.monotone_transform import MonotoneTransform
from fastgen.nn.elementwise.rq_spline import RationalQuadraticSpline
from fastgen.nn.elementwise.sos_polynomial import SOSPolynomial
from fastgen.nn.elementwise.spline_transform import SplineTransform
from fastgen.nn.flow.flow_layer import FlowLayer
from fastgen.nn.flow.flow_sequential import FlowSequential, Inverse
from fastgen.nn.flow.invertible_checkpoint import invertible_checkpoint
from fastgen.nn.flow.multi_scale import MultiScale
from fastgen.nn.linear.invertible_conv1x1 import InvertibleConv1x1
from fastgen.nn.networks.flow_plus_plus_net import GatedAttention, GatedAttentionNet
from fastgen.nn.networks.glow_cnn import ConvConditioner, EdgeConv2d, ZeroConv2d
from fastgen.nn.networks.mlp import MLP, ResidualMLP
from fastgen.nn.networks.nsf_resnet import ResidualConvNet
from fastgen.nn.networks.realnvp_resnet import ConvResNet
from fastgen.nn.normalization.act_norm import ActNorm
from fastgen.nn.normalization.flow_batch_norm import FlowBatchNorm
from fastgen.nn.normalization.weight_norm import apply_weight_norm, initialize_weight_norm
from fastgen.nn.posterior.amortized_flow import AmortizedFlow, DiagonalAffine, LinearAmortization
from fastgen.nn.posterior.planar import Planar
from fastgen.nn.posterior.radial import Radial
from fastgen.nn.posterior.sylvester import Sylvester
from fastgen.nn.quantization.dequantization import VariationalDequantization
from fastgen.nn.quantization.vector_quantizer import VectorQuantizer
from fastgen.nn.reshape.checkerboard_split import CheckerboardSplit
from fastgen.nn.reshape.permutation import Flatten, Permutation
from fastgen.nn.reshape.squeeze import Squeeze2d, checkerboard_mask
from fastgen.nn.residual.fixed_point import FixedPointNotConverged
from fastgen.nn.residual.invertible_residual import InvertibleResidual
from fastgen.nn.residual.lip_swish import LipSwish
from fastgen.nn.residual.lipschitz import LipschitzConv2d, LipschitzLinear
from fastgen.nn.residual.lipschitz_net import LipschitzConvNet, LipschitzMLP

__all__ = [
    "MADE",
    "MLP",
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "AmortizedFlow",
    "CausalAttention",
    "CausalConv1d",
    "CheckerboardSplit",
    "ContinuousFlow",
    "ConvConditioner",
    "ConvNetField",
    "ConvResNet",
    "CubicSpline",
    "DeepDenseSigmoidal",
    "DeepSigmoidal",
    "DiagonalAffine",
    "DiagonalLSTM",
    "DownRightShiftedConv2d",
    "DownRightShiftedConvTranspose2d",
    "DownShiftedConv2d",
    "DownShiftedConvTranspose2d",
    "EdgeConv2d",
    "FixedPointNotConverged",
    "Flatten",
    "FlowBatchNorm",
    "FlowLayer",
    "FlowPlusPlusStep",
    "FlowSequential",
    "GatedAttention",
    "GatedAttentionNet",
    "GatedResidualBlock1d",
    "GatedResnet",
    "HutchinsonTrace",
    "Inverse",
    "InverseAutoregressive",
    "InvertibleConv1x1",
    "InvertibleResidual",
    "LinearAmortization",
    "LipSwish",
    "LipschitzConv2d",
    "LipschitzConvNet",
    "LipschitzLinear",
    "LipschitzMLP",
    "LogisticMixtureCoupling",
    "Logit",
    "MLPField",
    "MaskedAffineAutoregressive",
    "MaskedAutoregressive",
    "MaskedConv2d",
    "MaskedLinear",
    "MaskedMLP",
    "MaskedSplineAutoregressive",
    "MonotoneIntegral",
    "MonotoneTransform",
    "MultiScale",
    "OdeSolver",
    "Permutation",
    "Planar",
    "Radial",
    "RationalQuadraticSpline",
    "ResMADE",
    "ResidualConvNet",
    "ResidualMLP",
    "RowLSTM",
    "SOSPolynomial",
    "SolverLimitExceeded",
    "SplineCoupling",
    "SplineTransform",
    "Squeeze2d",
    "Sylvester",
    "VariationalDequantization",
    "VectorQuantizer",
    "ZeroConv2d",
    "apply_weight_norm",
    "checkerboard_mask",
    "concat_elu",
    "down_shift",
    "initialize_weight_norm",
    "invertible_checkpoint",
    "monotone_inverse",
    "right_shift",
]
