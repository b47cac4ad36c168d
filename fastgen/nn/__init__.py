"""Layers to drop into a PyTorch model."""

from __future__ import annotations

from fastgen.nn.act_norm import ActNorm
from fastgen.nn.affine_coupling import AdditiveCoupling, AffineCoupling
from fastgen.nn.amortized_flow import AmortizedFlow, DiagonalAffine, LinearAmortization
from fastgen.nn.causal_conv import CausalConv1d, GatedResidualBlock1d
from fastgen.nn.checkerboard_split import CheckerboardSplit
from fastgen.nn.continuous_flow import ContinuousFlow
from fastgen.nn.conv_conditioner import ConvConditioner, EdgeConv2d, ZeroConv2d
from fastgen.nn.conv_field import ConvNetField
from fastgen.nn.conv_resnet import ConvResNet
from fastgen.nn.cubic_spline import CubicSpline
from fastgen.nn.deep_sigmoidal import DeepDenseSigmoidal, DeepSigmoidal
from fastgen.nn.dequantization import VariationalDequantization
from fastgen.nn.fields import MLPField
from fastgen.nn.fixed_point import FixedPointNotConverged
from fastgen.nn.flow_batch_norm import FlowBatchNorm
from fastgen.nn.flow_plus_plus_step import FlowPlusPlusStep
from fastgen.nn.flow_sequential import FlowSequential, Inverse
from fastgen.nn.gated_attention import GatedAttention, GatedAttentionNet
from fastgen.nn.hutchinson_trace import HutchinsonTrace
from fastgen.nn.invertible_checkpoint import invertible_checkpoint
from fastgen.nn.invertible_conv1x1 import InvertibleConv1x1
from fastgen.nn.invertible_residual import InvertibleResidual
from fastgen.nn.lip_swish import LipSwish
from fastgen.nn.lipschitz import LipschitzConv2d, LipschitzLinear
from fastgen.nn.lipschitz_net import LipschitzConvNet, LipschitzMLP
from fastgen.nn.logistic_mixture_coupling import LogisticMixtureCoupling
from fastgen.nn.logit import Logit
from fastgen.nn.made import MADE, MaskedMLP, ResMADE
from fastgen.nn.masked_affine_autoregressive import InverseAutoregressive, MaskedAffineAutoregressive
from fastgen.nn.masked_autoregressive import MaskedAutoregressive
from fastgen.nn.masked_conv import MaskedConv2d
from fastgen.nn.masked_linear import MaskedLinear
from fastgen.nn.masked_spline_autoregressive import MaskedSplineAutoregressive
from fastgen.nn.mlp import MLP, ResidualMLP
from fastgen.nn.monotone_integral import MonotoneIntegral
from fastgen.nn.monotone_inverse import monotone_inverse
from fastgen.nn.monotone_transform import MonotoneTransform
from fastgen.nn.multi_scale import MultiScale
from fastgen.nn.ode_solver import OdeSolver, SolverLimitExceeded
from fastgen.nn.permutation import Flatten, Permutation
from fastgen.nn.planar import Planar
from fastgen.nn.radial import Radial
from fastgen.nn.residual_conv_net import ResidualConvNet
from fastgen.nn.rq_spline import RationalQuadraticSpline
from fastgen.nn.shifted_conv import (
    DownRightShiftedConv2d,
    DownRightShiftedConvTranspose2d,
    DownShiftedConv2d,
    DownShiftedConvTranspose2d,
    GatedResnet,
    concat_elu,
    down_shift,
    right_shift,
)
from fastgen.nn.skew_lstm import DiagonalLSTM, RowLSTM
from fastgen.nn.sos_polynomial import SOSPolynomial
from fastgen.nn.spline_coupling import SplineCoupling
from fastgen.nn.spline_transform import SplineTransform
from fastgen.nn.squeeze import Squeeze2d, checkerboard_mask
from fastgen.nn.sylvester import Sylvester
from fastgen.nn.vector_quantizer import VectorQuantizer
from fastgen.nn.weight_norm import apply_weight_norm, initialize_weight_norm

__all__ = [
    "MADE",
    "MLP",
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "AmortizedFlow",
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
