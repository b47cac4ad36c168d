"""normflows on fastgen's kernels: rational-quadratic splines, affine couplings, masked autoregressive flows, 1x1 LU.

normflows' ``forward`` goes from latent to data, its ``inverse`` back. What would not gain on the CPU, such as couplings
of small tensors, is left to normflows there.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastgen.interop.eligible import eligible
from fastgen.interop.evaluated import Evaluated
from fastgen.interop.known_source import check_known
from fastgen.interop.masked_network import is_recorded
from fastgen.interop.packing import packed
from fastgen.interop.worthwhile import LARGE, NEVER_ON_CPU, is_worthwhile
from fastgen.ops import affine_coupling, lu_conv1x1, rq_spline

KNOWN = {
    "AffineCoupling.forward": ("7915832c47f6c8fd",),
    "AffineCoupling.inverse": ("f65182057373ea5b",),
    "MaskedAffineFlow.forward": ("0d18692e89ecab81",),
    "MaskedAffineFlow.inverse": ("aa7a7108999a449b",),
    "Autoregressive.inverse": ("07f516e72a4b7ea0",),
    "MaskedAffineAutoregressive._elementwise_inverse": ("64b465101b8b8767",),
    "MaskedAffineAutoregressive._unconstrained_scale_and_shift": ("e57d071749362acc",),
    "MaskedPiecewiseRationalQuadraticAutoregressive._elementwise_inverse": ("33fc958109c84796",),
    "MaskedPiecewiseRationalQuadraticAutoregressive._elementwise": ("3a5e9945e5f492cf",),
    "MADE.forward": ("713e23edadbe920b",),
    "MaskedFeedforwardBlock.forward": ("888291efcb7e80e9",),
    "MaskedResidualBlock.forward": ("3714a300d4ac7e57",),
    "MaskedLinear.forward": ("31e1a4991c4382b0",),
    "MaskedLinear._get_mask_and_degrees": ("2770aa04ea18446f",),
    "Invertible1x1Conv.forward": ("2ada79d8dbf045cd",),
    "Invertible1x1Conv.inverse": ("98f2de95daea4d1f",),
    "Invertible1x1Conv._assemble_W": ("a991a186e7f78a46",),
    "rational_quadratic_spline": ("131492726bf65e35",),
    "unconstrained_rational_quadratic_spline": ("39e0dce23b862b71",),
    "searchsorted": ("12c45fc30b2e0c9c",),
}
"""Digests of the functions that are replaced, and of those that the replacements rely on."""


def replacements() -> Iterator[tuple[Any, str, Any]]:
    """Yields what a kernel computes: its owner, its name, and what replaces it.

    Raises:
        ValueError: another source of a function than those of normflows 1.7.3.
    """
    from normflows.flows.affine.autoregressive import Autoregressive, MaskedAffineAutoregressive
    from normflows.flows.affine.coupling import AffineCoupling, MaskedAffineFlow
    from normflows.flows.mixing import Invertible1x1Conv
    from normflows.flows.neural_spline.autoregressive import MaskedPiecewiseRationalQuadraticAutoregressive
    from normflows.nets import made
    from normflows.utils import splines

    from fastgen.interop.normflows_autoregressive import autoregressive_inverse

    methods = {
        AffineCoupling: ("forward", "inverse"),
        MaskedAffineFlow: ("forward", "inverse"),
        Autoregressive: ("inverse",),
        MaskedAffineAutoregressive: ("_elementwise_inverse", "_unconstrained_scale_and_shift"),
        MaskedPiecewiseRationalQuadraticAutoregressive: ("_elementwise_inverse", "_elementwise"),
        made.MADE: ("forward",),
        made.MaskedFeedforwardBlock: ("forward",),
        made.MaskedResidualBlock: ("forward",),
        made.MaskedLinear: ("forward", "_get_mask_and_degrees"),
        Invertible1x1Conv: ("forward", "inverse", "_assemble_W"),
    }
    functions = {f"{owner.__name__}.{name}": getattr(owner, name) for owner, names in methods.items() for name in names}
    functions |= {
        name: getattr(splines, name)
        for name in ("rational_quadratic_spline", "unconstrained_rational_quadratic_spline", "searchsorted")
    }
    check_known("normflows 1.7.3", functions, KNOWN)
    yield from _everywhere(splines.rational_quadratic_spline, _bounded_spline)
    yield from _everywhere(splines.unconstrained_rational_quadratic_spline, _unbounded_spline)
    for inverse, name in enumerate(("forward", "inverse")):
        for owner, replacement in (
            (AffineCoupling, _coupling),
            (MaskedAffineFlow, _masked_coupling),
            (Invertible1x1Conv, _lu_convolution),
        ):
            yield owner, name, replacement(getattr(owner, name), bool(inverse))
    yield Autoregressive, "inverse", autoregressive_inverse(Autoregressive.inverse)


def _everywhere(original: Callable, replacement: Callable[[Callable], Callable]) -> Iterator[tuple[Any, str, Any]]:
    """Yields the replacement of a function for every module of normflows that has it by name."""
    replaced = replacement(original)
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "normflows":
            for name in [name for name, value in vars(module).items() if value is original]:
                yield module, name, replaced


def _unbounded_spline(original: Callable) -> Callable:
    @functools.wraps(original)
    def unconstrained_rational_quadratic_spline(
        inputs,
        unnormalized_widths,
        unnormalized_heights,
        unnormalized_derivatives,
        inverse=False,
        tails="linear",
        tail_bound=1.0,
        min_bin_width=1e-3,
        min_bin_height=1e-3,
        min_derivative=1e-3,
    ):
        least = (min_bin_width, min_bin_height, min_derivative)
        parts = (unnormalized_widths, unnormalized_heights, unnormalized_derivatives)
        if tails == "linear" and isinstance(tail_bound, (int, float)) and _fit(inputs, *parts, inner=-1):
            found = _spline(inputs, parts, inverse, "linear", tail_bound, *least)
            if found is not None:
                return found
        return original(inputs, *parts, inverse, tails, tail_bound, *least)

    return unconstrained_rational_quadratic_spline


def _bounded_spline(original: Callable) -> Callable:
    @functools.wraps(original)
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
        min_bin_width=1e-3,
        min_bin_height=1e-3,
        min_derivative=1e-3,
    ):
        least = (min_bin_width, min_bin_height, min_derivative)
        parts = (unnormalized_widths, unnormalized_heights, unnormalized_derivatives)
        bound = (left, right, bottom, top)
        if all(isinstance(b, (int, float)) for b in bound) and _fit(inputs, *parts, inner=1):
            found = _spline(inputs, parts, inverse, "bounded", bound, *least)
            if found is not None:
                return found
        return original(inputs, *parts, inverse, *bound, *least)

    return rational_quadratic_spline


def _fit(inputs: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, *, inner: int) -> bool:
    """Returns whether the tensors are one spline for each input, with ``inner`` more derivatives than bins."""
    if not eligible("rq_spline", inputs, widths, heights, derivatives):
        return False
    bins = widths.shape[-1] if widths.dim() else 0
    wanted = (*inputs.shape, bins)
    return widths.shape == heights.shape == wanted and derivatives.shape == (*inputs.shape, bins + inner)


def _spline(
    inputs: Tensor,
    parts: tuple[Tensor, Tensor, Tensor],
    inverse: bool,
    tails: str,
    bound: float | tuple[float, float, float, float],
    min_bin_width: float,
    min_bin_height: float,
    min_derivative: float,
) -> tuple[Tensor, Tensor] | None:
    """Returns None where ``rq_spline`` refuses, so that normflows raises its own error."""
    try:
        return rq_spline(
            inputs,
            packed(list(parts)),
            inverse=bool(inverse),
            tails=tails,
            bound=bound,
            min_width=min_bin_width,
            min_height=min_bin_height,
            min_derivative=min_derivative,
        )
    except ValueError:
        return None


_LEAST = {"exp": LARGE, "sigmoid": LARGE, "sigmoid_inv": NEVER_ON_CPU}
"""Scale map of a coupling -> the size from which the kernel is faster."""


def _coupling(original: Callable, inverse: bool) -> Callable:
    @functools.wraps(original)
    def coupling(self, z):
        z1, z2 = z
        if not (self.scale and self.scale_map in _LEAST and is_worthwhile(z2, _LEAST[self.scale_map])):
            return original(self, z)
        if not eligible("affine_coupling", z2) or z2.dim() < 2:
            return original(self, z)
        parameters = self.param_map(z1)
        wanted = (z2.shape[0], 2 * z2.shape[1], *z2.shape[2:])
        if parameters.shape != wanted or not eligible("affine_coupling", z2, parameters):
            return original(Evaluated(self, param_map=parameters), z)
        if self.scale_map == "exp":
            z2, log_det = affine_coupling(z2, parameters, inverse=inverse, interleaved=True)
        elif self.scale_map == "sigmoid":  # z / s + t is -(-z / s - t)
            z2, log_det = affine_coupling(
                -z2, parameters, parameterisation="sigmoid", inverse=not inverse, interleaved=True
            )
            z2 = -z2
        else:
            shift, raw = parameters[:, 0::2], parameters[:, 1::2]
            only_scale = torch.cat([torch.zeros_like(shift), raw], 1)
            moved = z2 - shift if inverse else z2
            z2, log_det = affine_coupling(moved, only_scale, parameterisation="sigmoid", inverse=inverse)
            z2 = z2 if inverse else z2 + shift
        return [z1, z2], log_det

    return coupling


def _masked_coupling(original: Callable, inverse: bool) -> Callable:
    @functools.wraps(original)
    def masked_coupling(self, z):
        if not eligible("affine_coupling", z, self.b):
            return original(self, z)
        if z.dim() < 2 or z.shape[1:] != self.b.shape[1:] or not torch.equal(self.b * self.b, self.b):
            return original(self, z)
        if not is_worthwhile(z, NEVER_ON_CPU if is_recorded(self, z) else LARGE // 4):
            return original(self, z)
        kept = self.b * z
        shift, log_scale = self.t(kept), self.s(kept)
        if not (shift.shape == log_scale.shape == z.shape and eligible("affine_coupling", z, shift, log_scale)):
            return original(Evaluated(self, t=shift, s=log_scale), z)
        changed = 1 - self.b
        parameters = torch.cat([changed * shift, changed * log_scale], 1)
        nan = float("nan")
        return affine_coupling(z, parameters.nan_to_num(nan, nan, nan), inverse=inverse)

    return masked_coupling


def _lu_convolution(original: Callable, inverse: bool) -> Callable:
    """From latent to data the kernel's solves are faster than inverse matrices, but their backward is not."""

    @functools.wraps(original)
    def lu_convolution(self, z):
        if not self.use_lu or z.dim() != 4 or z.shape[1] != self.num_channels:
            return original(self, z)
        factors = (self.L, self.U, self.log_S, self.sign_S)
        if not eligible("lu_conv1x1", z, *factors):
            return original(self, z)
        faster = is_worthwhile(z, LARGE // 2) if inverse else not is_recorded(self, z)
        if not faster:
            return original(self, z)
        z, _ = lu_conv1x1(z, self.P.argmax(1), *factors, inverse=not inverse)
        log_det = self.log_S.sum() * (z.shape[2] * z.shape[3])
        return z, log_det if inverse else -log_det

    return lu_convolution
