"""nflows on fastgen's kernels: rational-quadratic and cubic splines, the inverse of masked autoregressive flows.

Its affine coupling (a scale of sigmoid(a + 2) + 0.001), actnorm, LU linear map and 1x1 convolution stay as they are:
no kernel of fastgen's is faster at them than what PyTorch runs for nflows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nflows.transforms import autoregressive, coupling, made, splines
from nflows.transforms.splines import cubic, rational_quadratic
from nflows.utils import torchutils

from fastgen.interop import nflows_splines
from fastgen.interop.known_source import check_known
from fastgen.interop.nflows_autoregressive import inverse

_HOLDERS = {
    "rational_quadratic_spline": (rational_quadratic, splines, autoregressive),
    "unconstrained_rational_quadratic_spline": (rational_quadratic, splines, autoregressive),
    "cubic_spline": (cubic, splines, autoregressive),
    "unconstrained_cubic_spline": (cubic, splines),
}
"""Modules that have a function under its name."""

_RELIED_ON = (
    (rational_quadratic, "rational_quadratic_spline", "unconstrained_rational_quadratic_spline"),
    (cubic, "cubic_spline", "unconstrained_cubic_spline"),
    (torchutils, "searchsorted"),
    (coupling.PiecewiseRationalQuadraticCouplingTransform, "_piecewise_cdf"),
    (autoregressive.AutoregressiveTransform, "inverse"),
    (autoregressive.MaskedAffineAutoregressiveTransform, "_elementwise_inverse", "_unconstrained_scale_and_shift"),
    (autoregressive.MaskedPiecewiseRationalQuadraticAutoregressiveTransform, "_elementwise_inverse", "_elementwise"),
    (made.MADE, "forward"),
    (made.MaskedResidualBlock, "forward"),
    (made.MaskedFeedforwardBlock, "forward"),
    (made.MaskedLinear, "forward"),
)
"""Functions that are replaced, and those that the replacements rely on."""

KNOWN = {
    "nflows.transforms.splines.rational_quadratic.rational_quadratic_spline": ("7149e3c294ab1019",),
    "nflows.transforms.splines.rational_quadratic.unconstrained_rational_quadratic_spline": ("20a953307134978d",),
    "nflows.transforms.splines.cubic.cubic_spline": ("407266d8f1adebf2",),
    "nflows.transforms.splines.cubic.unconstrained_cubic_spline": ("cf869d1558897b8c",),
    "nflows.utils.torchutils.searchsorted": ("12c45fc30b2e0c9c",),
    "PiecewiseRationalQuadraticCouplingTransform._piecewise_cdf": ("ed49d7e16980d0d0",),
    "AutoregressiveTransform.inverse": ("07f516e72a4b7ea0",),
    "MaskedAffineAutoregressiveTransform._elementwise_inverse": ("4f16c2f536193f3e",),
    "MaskedAffineAutoregressiveTransform._unconstrained_scale_and_shift": ("e57d071749362acc",),
    "MaskedPiecewiseRationalQuadraticAutoregressiveTransform._elementwise_inverse": ("33fc958109c84796",),
    "MaskedPiecewiseRationalQuadraticAutoregressiveTransform._elementwise": ("590a1f9b4657cd75",),
    "MADE.forward": ("959ee9a5d4b6b0f3",),
    "MaskedResidualBlock.forward": ("dfafbfedf3330c8f",),
    "MaskedFeedforwardBlock.forward": ("f02dc7d76245a14a",),
    "MaskedLinear.forward": ("31e1a4991c4382b0",),
}
"""Digests of the functions in ``_RELIED_ON``."""


def replacements() -> Iterator[tuple[Any, str, Any]]:
    """Yields what a kernel computes: its owner, its name, and what replaces it.

    Raises:
        ValueError: another source of a function than those of nflows 0.14.
    """
    functions = {f"{owner.__name__}.{name}": getattr(owner, name) for owner, *names in _RELIED_ON for name in names}
    check_known("nflows 0.14", functions, KNOWN)
    for name, modules in _HOLDERS.items():
        for module in modules:
            yield module, name, getattr(nflows_splines, name)
    yield autoregressive.AutoregressiveTransform, "inverse", inverse
    yield coupling.PiecewiseRationalQuadraticCouplingTransform, "_piecewise_cdf", nflows_splines.piecewise_cdf
