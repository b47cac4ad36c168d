"""The ops, one public function each, and the choice of the backend that runs them."""

from fastgen.ops.affine_coupling import affine_coupling, affine_coupling_
from fastgen.ops.causal_conv1d import causal_conv1d
from fastgen.ops.conv_field import ConvField
from fastgen.ops.cubic_spline import cubic_spline
from fastgen.ops.dense_field import DenseField
from fastgen.ops.hutchinson_trace import hutchinson_trace
from fastgen.ops.logistic_mixture import logistic_mixture
from fastgen.ops.logistic_mixture_cdf import logistic_mixture_cdf
from fastgen.ops.lu_conv1x1 import lu_conv1x1
from fastgen.ops.masked_conv2d import masked_conv2d
from fastgen.ops.philox_uniform import philox_uniform
from fastgen.ops.registry import Backend, backend, backends
from fastgen.ops.rq_spline import rq_spline
from fastgen.ops.sequential_affine import sequential_affine
from fastgen.ops.skew_lstm import skew_lstm
from fastgen.ops.vector_quantize import vector_quantize

__all__ = [
    "Backend",
    "ConvField",
    "DenseField",
    "affine_coupling",
    "affine_coupling_",
    "backend",
    "backends",
    "causal_conv1d",
    "cubic_spline",
    "hutchinson_trace",
    "logistic_mixture",
    "logistic_mixture_cdf",
    "lu_conv1x1",
    "masked_conv2d",
    "philox_uniform",
    "rq_spline",
    "sequential_affine",
    "skew_lstm",
    "vector_quantize",
]
