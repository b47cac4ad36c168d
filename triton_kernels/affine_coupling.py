"""The affine map of a coupling layer on the GPU: a program takes a run of one sample's elements."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._math import tanh

BLOCK = 1024


@triton.jit
def _factor(raw, scale, kind: tl.constexpr, inverse: tl.constexpr):
    """What an element is multiplied by, its logarithm, and the derivatives of that by raw and by scale."""
    if kind == 2:
        h = raw + 2.0
        z = tl.exp(-tl.abs(h))
        top = tl.where(h < 0, z, 1.0)
        log = tl.minimum(h, 0.0) - tl.log(1.0 + z)
        of_raw = tl.where(h < 0, 1.0, z) / (1.0 + z)
        of_scale = tl.zeros_like(raw)
        value = 1.0 + tl.exp(-h) if inverse else top / (1.0 + z)
    elif kind == 1:
        of_scale = tanh(raw)
        log = scale * of_scale
        of_raw = scale * (1.0 - of_scale) * (1.0 + of_scale)
        value = tl.exp(-log) if inverse else tl.exp(log)
    else:
        log = raw
        of_raw = tl.zeros_like(raw) + 1.0
        of_scale = tl.zeros_like(raw)
        value = tl.exp(-raw) if inverse else tl.exp(raw)
    if inverse:
        log, of_raw, of_scale = -log, -of_raw, -of_scale
    return value, log, of_raw, of_scale


@triton.jit
def _places(elements, positions, blocks, interleaved: tl.constexpr, block: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) // blocks
    e = (tl.program_id(0).to(tl.int64) % blocks) * block + tl.arange(0, block)
    channel = e // positions
    if interleaved:
        shift = 2 * n * elements + e + channel * positions
        raw = shift + positions
    else:
        shift = 2 * n * elements + e
        raw = shift + elements
    return n, e, channel, shift, raw


@triton.jit(do_not_specialize=["elements", "positions", "blocks"])
def affine_coupling_kernel(
    y, log_det, x, parameters, scale, mask, elements, positions, blocks,
    kind: tl.constexpr, inverse: tl.constexpr, interleaved: tl.constexpr, masked: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    n, e, channel, at_shift, at_raw = _places(elements, positions, blocks, interleaved, block)
    inside = e < elements
    given = tl.load(x + n * elements + e, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(parameters + at_shift, mask=inside, other=0.0).to(tl.float32)
    raw = tl.load(parameters + at_raw, mask=inside, other=0.0).to(tl.float32)
    k = raw
    if kind == 1:
        k = tl.load(scale + channel, mask=inside, other=0.0).to(tl.float32)
    value, log, _, _ = _factor(raw, k, kind, inverse)
    if kind == 2:
        out = given * value - shift if inverse else (given + shift) * value
    else:
        out = (given - shift) * value if inverse else given * value + shift
    if masked:
        kept = tl.load(mask + e, mask=inside, other=1) != 0
        out = tl.where(kept, given, out)
        log = tl.where(kept, 0.0, log)
    tl.store(y + n * elements + e, out, mask=inside)
    tl.store(log_det + tl.program_id(0), tl.sum(tl.where(inside, log, 0.0), 0))


@triton.jit(do_not_specialize=["elements", "positions", "blocks"])
def affine_coupling_backward_kernel(
    grad_x, grad_parameters, grad_scale, grad_y, grad_log_det, x, parameters, scale, mask, elements, positions, blocks,
    kind: tl.constexpr, inverse: tl.constexpr, interleaved: tl.constexpr, masked: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    n, e, channel, at_shift, at_raw = _places(elements, positions, blocks, interleaved, block)
    inside = e < elements
    at = n * elements + e
    given = tl.load(grad_y + at, mask=inside, other=0.0).to(tl.float32)
    of_log = tl.load(grad_log_det + n).to(tl.float32)
    base = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    raw = tl.load(parameters + at_raw, mask=inside, other=0.0).to(tl.float32)
    k = raw
    if kind == 1:
        k = tl.load(scale + channel, mask=inside, other=0.0).to(tl.float32)
    if inverse != (kind == 2):
        shift = tl.load(parameters + at_shift, mask=inside, other=0.0).to(tl.float32)
        base = base - shift if inverse else base + shift
    value, _, of_raw, of_scale = _factor(raw, k, kind, inverse)
    of_x = given * value
    of_shift = of_x if kind == 2 else given
    if inverse:
        of_shift = -given if kind == 2 else -of_x
    along = of_x * base + of_log
    of_raw *= along
    of_scale *= along
    if masked:
        kept = tl.load(mask + e, mask=inside, other=1) != 0
        of_x = tl.where(kept, given, of_x)
        of_shift = tl.where(kept, 0.0, of_shift)
        of_raw = tl.where(kept, 0.0, of_raw)
        of_scale = tl.where(kept, 0.0, of_scale)
    tl.store(grad_x + at, of_x, mask=inside)
    tl.store(grad_parameters + at_shift, of_shift, mask=inside)
    tl.store(grad_parameters + at_raw, of_raw, mask=inside)
    if kind == 1:
        tl.store(grad_scale + at, of_scale, mask=inside)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    elements = x[0].numel()
    return elements, elements // x.shape[1], triton.cdiv(elements, BLOCK)


def _constants(mask: Tensor | None, inverse: bool, parameterisation: int, interleaved: bool) -> dict:
    masked = mask is not None
    return {"kind": parameterisation, "inverse": inverse, "interleaved": interleaved, "masked": masked, "block": BLOCK}


def _forward(y: Tensor, x: Tensor, parameters: Tensor, scale: Tensor, mask: Tensor | None, *how) -> Tensor:
    if not x.numel():
        return x.new_zeros(x.shape[0])
    sizes = _sizes(x)
    parts = x.new_empty(x.shape[0], sizes[2])
    tensors = parameters.contiguous(), scale.contiguous(), scale if mask is None else mask.contiguous()
    affine_coupling_kernel[(parts.numel(),)](y, parts, x, *tensors, *sizes, **_constants(mask, *how))
    return parts.sum(1)


def affine_coupling(x: Tensor, *arguments) -> tuple[Tensor, Tensor]:
    """See ``fastgen.ops.affine_coupling``."""
    x = x.contiguous()
    y = torch.empty_like(x)
    log_det = _forward(y, x, *arguments)
    return y, log_det


def affine_coupling_(x: Tensor, *arguments) -> Tensor:
    """Over x, which is contiguous; the log-determinant."""
    return _forward(x, x, *arguments)


def affine_coupling_backward(
    grad_y: Tensor, grad_log_det: Tensor, x: Tensor, parameters: Tensor, scale: Tensor, mask: Tensor | None, *how
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, ``parameters`` and ``scale``."""
    x, parameters, scale = x.contiguous(), parameters.contiguous(), scale.contiguous()
    grad_x, grad_parameters, grad_scale = torch.empty_like(x), torch.empty_like(parameters), torch.zeros_like(scale)
    if not x.numel():
        return grad_x, grad_parameters, grad_scale
    constants, sizes = _constants(mask, *how), _sizes(x)
    tanh = constants["kind"] == 1
    each = torch.empty_like(x) if tanh else grad_scale
    affine_coupling_backward_kernel[(x.shape[0] * sizes[2],)](
        grad_x, grad_parameters, each, grad_y.contiguous(), grad_log_det.contiguous(), x, parameters, scale,
        scale if mask is None else mask.contiguous(), *sizes, **constants,
    )  # fmt: skip
    return grad_x, grad_parameters, each.transpose(0, 1).flatten(1).sum(1) if tanh else grad_scale


_SIZES = {"elements": "i64", "positions": "i64", "blocks": "i64"}
_INPUTS = {"x": "*fp32", "parameters": "*fp32", "scale": "*fp32", "mask": "*u8"}
_CONSTANTS = [
    {"kind": kind, "inverse": inverse, "interleaved": True, "masked": True, "block": BLOCK}
    for kind in range(3)
    for inverse in (False, True)
]

# what `make check-cuda` compiles: kernel, the types of its arguments, its constants and options
COMPILED = [
    (affine_coupling_kernel, {"y": "*fp32", "log_det": "*fp32"} | _INPUTS | _SIZES, constants)
    for constants in _CONSTANTS
] + [
    (
        affine_coupling_backward_kernel,
        {"grad_x": "*fp32", "grad_parameters": "*fp32", "grad_scale": "*fp32", "grad_y": "*fp32"}
        | {"grad_log_det": "*fp32"}
        | _INPUTS
        | _SIZES,
        constants,
    )
    for constants in _CONSTANTS
]
