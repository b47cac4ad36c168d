"""The spline functions of nflows 0.14 on fastgen's kernels."""

from __future__ import annotations

import functools
from numbers import Real

import torch
from nflows.transforms import coupling, splines
from nflows.transforms.splines import cubic, rational_quadratic
from torch import Tensor

from fastgen.interop.eligible import eligible
from fastgen.interop.packing import packed
from fastgen.ops import cubic_spline as cubic_op
from fastgen.ops import rq_spline as rational_quadratic_op

_rational_quadratic_spline = rational_quadratic.rational_quadratic_spline
_unconstrained_rational_quadratic_spline = rational_quadratic.unconstrained_rational_quadratic_spline
_cubic_spline = cubic.cubic_spline
_unconstrained_cubic_spline = cubic.unconstrained_cubic_spline
_piecewise_cdf = coupling.PiecewiseRationalQuadraticCouplingTransform._piecewise_cdf

_LEAST = 1e-6
"""Relative distance that ``cubic_spline`` keeps the end slopes from 0 and from 3 times the bin's; nflows keeps none."""
_STEEPEST = 13.0
"""The largest raw parameter of such a slope whose sigmoid stays clear of that part, in float32."""


@functools.wraps(_rational_quadratic_spline)
def rational_quadratic_spline(
    inputs,
    unnormalized_widths,
    unnormalized_heights,
    unnormalized_derivatives,
    inverse=False,
    left=0.0,
    right=1.0,
    bottom=0.0,
    top=1.0,
    min_bin_width=rational_quadratic.DEFAULT_MIN_BIN_WIDTH,
    min_bin_height=rational_quadratic.DEFAULT_MIN_BIN_HEIGHT,
    min_derivative=rational_quadratic.DEFAULT_MIN_DERIVATIVE,
):
    parts = [unnormalized_widths, unnormalized_heights, unnormalized_derivatives]
    interval, least = (left, right, bottom, top), (min_bin_width, min_bin_height, min_derivative)
    if not (
        _fit("rq_spline", inputs, parts, [1])
        and _are_allowed(parts[0].shape[-1], *least)
        and _is_inside(inputs, inverse, *interval)
    ):
        return _rational_quadratic_spline(inputs, *parts, inverse, *interval, *least)
    return rational_quadratic_op(
        inputs, packed(parts), inverse=inverse, tails="bounded", bound=interval, **_names(*least)
    )


@functools.wraps(_unconstrained_rational_quadratic_spline)
def unconstrained_rational_quadratic_spline(
    inputs,
    unnormalized_widths,
    unnormalized_heights,
    unnormalized_derivatives,
    inverse=False,
    tails="linear",
    tail_bound=1.0,
    min_bin_width=rational_quadratic.DEFAULT_MIN_BIN_WIDTH,
    min_bin_height=rational_quadratic.DEFAULT_MIN_BIN_HEIGHT,
    min_derivative=rational_quadratic.DEFAULT_MIN_DERIVATIVE,
):
    parts = [unnormalized_widths, unnormalized_heights, unnormalized_derivatives]
    least = min_bin_width, min_bin_height, min_derivative
    if not (
        tails == "linear"
        and _fit("rq_spline", inputs, parts, [-1])
        and _are_allowed(parts[0].shape[-1], *least)
        and _is_bound(tail_bound)
    ):
        return _unconstrained_rational_quadratic_spline(inputs, *parts, inverse, tails, tail_bound, *least)
    return rational_quadratic_op(inputs, packed(parts), inverse=inverse, bound=tail_bound, **_names(*least))


@functools.wraps(_cubic_spline)
def cubic_spline(
    inputs,
    unnormalized_widths,
    unnormalized_heights,
    unnorm_derivatives_left,
    unnorm_derivatives_right,
    inverse=False,
    left=0.0,
    right=1.0,
    bottom=0.0,
    top=1.0,
    min_bin_width=cubic.DEFAULT_MIN_BIN_WIDTH,
    min_bin_height=cubic.DEFAULT_MIN_BIN_HEIGHT,
    eps=cubic.DEFAULT_EPS,
    quadratic_threshold=cubic.DEFAULT_QUADRATIC_THRESHOLD,
):
    parts = [unnormalized_widths, unnormalized_heights, unnorm_derivatives_left, unnorm_derivatives_right]
    interval, least = (left, right, bottom, top), (min_bin_width, min_bin_height)
    if not (
        _fit_cubic(inputs, parts, least)
        and _is_inside(inputs, inverse, *interval)
        and (left, right) == (bottom, top)  # nflows leaves the slope of the interval out of its log-determinant
    ):
        return _cubic_spline(inputs, *parts, inverse, *interval, *least, eps, quadratic_threshold)
    return cubic_op(
        inputs, _cubic_parameters(parts), inverse=inverse, tails="bounded", bound=interval, **_names(*least)
    )


@functools.wraps(_unconstrained_cubic_spline)
def unconstrained_cubic_spline(
    inputs,
    unnormalized_widths,
    unnormalized_heights,
    unnorm_derivatives_left,
    unnorm_derivatives_right,
    inverse=False,
    tail_bound=1.0,
    tails="linear",
    min_bin_width=cubic.DEFAULT_MIN_BIN_WIDTH,
    min_bin_height=cubic.DEFAULT_MIN_BIN_HEIGHT,
    eps=cubic.DEFAULT_EPS,
    quadratic_threshold=cubic.DEFAULT_QUADRATIC_THRESHOLD,
):
    parts = [unnormalized_widths, unnormalized_heights, unnorm_derivatives_left, unnorm_derivatives_right]
    least = min_bin_width, min_bin_height
    if not (tails == "linear" and _fit_cubic(inputs, parts, least) and _is_bound(tail_bound)):
        return _unconstrained_cubic_spline(inputs, *parts, inverse, tail_bound, tails, *least, eps, quadratic_threshold)
    return cubic_op(inputs, _cubic_parameters(parts), inverse=inverse, bound=tail_bound, **_names(*least))


@functools.wraps(_piecewise_cdf)
def piecewise_cdf(self, inputs, transform_params, inverse=False):
    """Replaces the spline of a coupling; nflows scales widths and heights in place, which its backward must copy."""
    network, bins = self.transform_net, self.num_bins
    hidden = getattr(network, "hidden_features", getattr(network, "hidden_channels", None))
    if hidden is None or not eligible("rq_spline", inputs, transform_params):
        return _piecewise_cdf(self, inputs, transform_params, inverse)
    scale = transform_params.new_ones(transform_params.shape[-1])
    scale[: 2 * bins] = hidden**-0.5
    parts = (transform_params * scale).split([bins, bins, transform_params.shape[-1] - 2 * bins], -1)
    least = self.min_bin_width, self.min_bin_height, self.min_derivative
    if self.tails is None:
        return splines.rational_quadratic_spline(inputs, *parts, inverse, 0.0, 1.0, 0.0, 1.0, *least)
    return splines.unconstrained_rational_quadratic_spline(inputs, *parts, inverse, self.tails, self.tail_bound, *least)


def _fit(op: str, inputs: Tensor, parts: list[Tensor], more: list[int]) -> bool:
    """Returns whether a kernel takes these tensors.

    Args:
        parts: [..., K] widths, [..., K] heights, and others.
        more: how many numbers more than K the others have.
    """
    if not all(isinstance(t, Tensor) and t.dim() for t in (inputs, *parts)) or not inputs.numel():
        return False
    bins = parts[0].shape[-1]
    wanted = [bins, bins, *(bins + extra for extra in more)]
    fit = all(part.shape == (*inputs.shape, count) for part, count in zip(parts, wanted, strict=True))
    return fit and bins > 0 and eligible(op, inputs, *parts)


def _fit_cubic(inputs: Tensor, parts: list[Tensor], least: tuple[float, float]) -> bool:
    """Returns the same for widths, heights and both ends, if neither of the least sizes is 0."""
    if not isinstance(parts[0], Tensor) or not parts[0].dim():
        return False
    bins = parts[0].shape[-1]
    if not _fit("cubic_spline", inputs, parts, [1 - bins, 1 - bins]) or not _are_allowed(bins, *least):
        return False
    return min(least) > 0 and bool((torch.cat(parts[2:], -1).abs() < _STEEPEST).all())


def _cubic_parameters(parts: list[Tensor]) -> Tensor:
    """Returns the parameters of ``cubic_spline`` whose end slopes are those of nflows."""
    ends = torch.cat(parts[2:], -1)
    ends = (ends.sigmoid() - _LEAST).log() - ((-ends).sigmoid() - _LEAST).log()
    return torch.cat([*parts[:2], ends], -1)


def _are_allowed(bins: int, *least: float) -> bool:
    """Returns whether the kernel takes these least widths, heights and slopes."""
    if not all(isinstance(number, Real) and number >= 0 for number in least):
        return False
    return max(least[:2]) * bins < 1 and all(number > 0 for number in least[2:])


def _is_bound(bound: float) -> bool:
    return isinstance(bound, Real) and bound > 0


def _is_inside(inputs: Tensor, inverse: bool, left: float, right: float, bottom: float, top: float) -> bool:
    """Returns whether a spline without tails is defined at every input; nflows checks the inverse by left and right."""
    if not all(isinstance(end, Real) for end in (left, right, bottom, top)):
        return False
    if not (left < right and bottom < top) or (inverse and (left, right) != (bottom, top)):
        return False
    return bool(((inputs >= left) & (inputs <= right)).all())


def _names(min_width: float, min_height: float, min_derivative: float | None = None) -> dict[str, float]:
    least = {"min_width": min_width, "min_height": min_height}
    return least if min_derivative is None else least | {"min_derivative": min_derivative}
