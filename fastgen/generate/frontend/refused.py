"""Operators that no rule can compute step by step: why, and what to write instead."""

from __future__ import annotations

import torch

aten = torch.ops.aten

_POSITIONS = (
    "takes its statistics over positions, later ones too",
    "Normalise over the channels of each position: move them last, then layer_norm or rms_norm over them",
)
_SIZES = (
    "gives a tensor whose size depends on the values",
    "Keep the size: torch.where with a mask, or a sum of comparisons",
)
_COMPLEX = (
    "computes with complex numbers, or over all positions at once",
    "Write a causal convolution as conv1d with padding on the left, and complex numbers as pairs of real ones",
)
_NUMBER = (
    "reads a number of a tensor into Python",
    "Keep it a tensor: .item(), .tolist(), int() and float() of what is computed cannot be traced",
)
_TWO = (
    "multiplies two tensors that both depend on the input",
    "Write it as an elementwise product and a linear layer",
)

REFUSED: dict[object, tuple[str, str]] = {
    aten._native_batch_norm_legit.no_stats: _POSITIONS,
    aten.instance_norm.default: _POSITIONS,
    aten._unique2.default: _SIZES,
    aten.unique_dim.default: _SIZES,
    aten.nonzero.default: _SIZES,
    aten.masked_select.default: _SIZES,
    aten.repeat_interleave.Tensor: _SIZES,
    aten.complex.default: _COMPLEX,
    aten.polar.default: _COMPLEX,
    aten._fft_r2c.default: _COMPLEX,
    aten._fft_c2c.default: _COMPLEX,
    aten._fft_c2r.default: _COMPLEX,
    aten.view_as_complex.default: _COMPLEX,
    aten._local_scalar_dense.default: _NUMBER,
    aten.item.default: _NUMBER,
    aten._trilinear.default: _TWO,
    aten.bilinear.default: _TWO,
}
"""By operator: the reason, and what to change."""

_WHOSE = "is, among equal elements, whatever PyTorch's implementation gives"

REFUSED_RESULTS: dict[object, tuple[str, str]] = {
    aten.sort.default: (_WHOSE, "Use sort(stable=True) or argsort(stable=True)"),
    **dict.fromkeys(
        (aten.topk.default, aten.kthvalue.default, aten.median.dim),
        (_WHOSE, "Use the values, or the first indices of sort(stable=True)"),
    ),
    **dict.fromkeys((aten.cummax.default, aten.cummin.default), (_WHOSE, "Use the values, and compare with them")),
}
"""Of operators whose first result has a rule: why the others have none, and what to change."""
