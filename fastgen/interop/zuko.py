"""zuko on fastgen's kernels: rational-quadratic splines, the inverse of masked autoregressive flows, of LU maps.

Its affine transform (a soft-clipped exponent) and its coupling stay as they are: no kernel of fastgen's is faster at
them than what PyTorch runs for zuko. Flows that exist already are accelerated, as they make their splines anew for
every call; a ``MonotonicRQSTransform`` that exists stays as it is. Masked linear maps multiply by numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from zuko import flows, nn, transforms

from fastgen.interop import zuko_autoregressive, zuko_masked_linear, zuko_spline
from fastgen.interop.known_source import check_known

_RELIED_ON = (
    (transforms.MonotonicRQSTransform, "__init__", "_call", "_inverse", "call_and_ladj", "log_abs_det_jacobian"),
    (transforms.MonotonicAffineTransform, "__init__", "_inverse"),
    (transforms.AutoregressiveTransform, "_inverse"),
    (transforms.LULinearTransform, "__init__", "_inverse"),
    (flows.autoregressive.MaskedAutoregressiveTransform, "meta", "forward"),
    (nn.MaskedMLP, "forward"),
    (nn.MaskedLinear, "forward"),
    (nn.Residual, "forward"),
)
"""Functions that are replaced, and those that the replacements rely on."""

KNOWN = {
    "MonotonicRQSTransform.__init__": ("263a4e8c496cc880",),
    "MonotonicRQSTransform._call": ("5e97a53246f06825",),
    "MonotonicRQSTransform._inverse": ("53a62404ef765195",),
    "MonotonicRQSTransform.call_and_ladj": ("53efe48651a04619",),
    "MonotonicRQSTransform.log_abs_det_jacobian": ("71b7df107ce3c459",),
    "MonotonicAffineTransform.__init__": ("a186cd404a6e26e0",),
    "MonotonicAffineTransform._inverse": ("6d24275853263971",),
    "AutoregressiveTransform._inverse": ("531e169562c97ef2",),
    "LULinearTransform.__init__": ("58a92d9b30f3455a",),
    "LULinearTransform._inverse": ("26706507bc39e7f2",),
    "MaskedAutoregressiveTransform.meta": ("8c3144c8520daef1",),
    "MaskedAutoregressiveTransform.forward": ("b990e51ca37caeea",),
    "MaskedMLP.forward": ("cf2aadd8853835c2",),
    "MaskedLinear.forward": ("9f4a21a23c200f48",),
    "Residual.forward": ("686f0380030da5a2",),
}
"""Digests of the functions in ``_RELIED_ON``."""

_lu_inverse = transforms.LULinearTransform._inverse


def replacements() -> Iterator[tuple[Any, str, Any]]:
    """Yields what a kernel computes: its owner, its name, and what replaces it.

    Raises:
        ValueError: another source of a function than those of zuko 1.6.0.
    """
    functions = {f"{owner.__name__}.{name}": getattr(owner, name) for owner, *names in _RELIED_ON for name in names}
    check_known("zuko 1.6.0", functions, KNOWN)
    yield transforms.MonotonicRQSTransform, "__init__", zuko_spline.init
    yield transforms.AutoregressiveTransform, "_inverse", zuko_autoregressive.inverse
    yield transforms.LULinearTransform, "_inverse", _solve_all
    yield nn.MaskedLinear, "forward", zuko_masked_linear.forward


@functools.wraps(_lu_inverse)
def _solve_all(self, y: Tensor) -> Tensor:
    """Solves for all right-hand sides in two triangular solves; zuko copies the matrix for every one."""
    if self.L.dim() != 2 or y.dim() < 2 or y.shape[-1] != self.L.shape[-1]:
        return _lu_inverse(self, y)
    rows = torch.linalg.solve_triangular(self.L.mT, y.reshape(-1, y.shape[-1]), upper=True, left=False)
    rows = torch.linalg.solve_triangular(self.U.mT, rows, upper=False, left=False, unitriangular=True)
    return rows.reshape(y.shape)
