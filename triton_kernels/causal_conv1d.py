"""Dilated causal convolution on the GPU: a product of matrices for each tap, and one kernel for all that follows it.

The kernel adds bias and condition to the sums and applies the gate; that of the backward writes the gradients of the
sums over the sums, which are computed once more, and leaves their totals over runs of time. Residual and skip are
products that accumulate on what they are added to.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._math import sigmoid, tanh

BLOCK, WARPS = 1024, 8


@triton.jit
def _gated(a, g, gate: tl.constexpr):
    """The unit's value and its derivatives by a and g; by number as in ``fastgen.reference.causal_conv1d.GATES``."""
    if gate == 1:
        t, s = tanh(a), sigmoid(g)
        value, of_a, of_g = t * s, (1.0 - t) * (1.0 + t) * s, t * s * (1.0 - s)
    elif gate == 2:
        s = sigmoid(g)
        value, of_a, of_g = a * s, s, a * s * (1.0 - s)
    elif gate == 3:
        of_a = tl.where(g < 0, 0.0, g)
        value, of_g = a * of_a, tl.where(g > 0, a, 0.0)
    elif gate == 4:
        whole = 0.5 * (1.0 + tl.erf(g * 0.7071067811865476))
        density = tl.exp(-0.5 * g * g) * 0.3989422804014327
        of_a = g * whole
        value, of_g = a * of_a, a * (whole + g * density)
    else:
        s = sigmoid(g)
        of_a = g * s
        value, of_g = a * of_a, a * (s + of_a * (1.0 - s))
    return value, of_a, of_g


@triton.jit
def _sum_at(sums, bias, condition, place, output, t, inside, times, constant: tl.constexpr):
    """The sums of one sample's output at the times t, with bias and condition."""
    s = tl.load(sums + place * times + t, mask=inside, other=0.0).to(tl.float32)
    s += tl.load(bias + output).to(tl.float32)
    if constant:
        return s + tl.load(condition + place).to(tl.float32)
    return s + tl.load(condition + place * times + t, mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["rows", "times", "blocks"])
def causal_conv1d_kernel(
    y, sums, bias, condition, rows, times, blocks,
    gate: tl.constexpr, constant: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) // blocks
    t = tl.program_id(0).to(tl.int64) % blocks * block + tl.arange(0, block)
    n, r, inside = row // rows, row % rows, t < times
    outputs = rows if gate == 0 else 2 * rows
    place = n * outputs + r
    value = _sum_at(sums, bias, condition, place, r, t, inside, times, constant)
    if gate != 0:
        g = _sum_at(sums, bias, condition, place + rows, r + rows, t, inside, times, constant)
        value, _, _ = _gated(value, g, gate)
    tl.store(y + row * times + t, value, mask=inside)


@triton.jit(do_not_specialize=["rows", "times", "blocks"])
def causal_conv1d_backward_kernel(
    totals, sums, grad, bias, condition, rows, times, blocks,
    gate: tl.constexpr, constant: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row, b = tl.program_id(0).to(tl.int64) // blocks, tl.program_id(0).to(tl.int64) % blocks
    t = b * block + tl.arange(0, block)
    n, r, inside = row // rows, row % rows, t < times
    outputs = rows if gate == 0 else 2 * rows
    place = n * outputs + r
    of_sum = tl.load(grad + row * times + t, mask=inside, other=0.0).to(tl.float32)
    if gate != 0:
        a = _sum_at(sums, bias, condition, place, r, t, inside, times, constant)
        g = _sum_at(sums, bias, condition, place + rows, r + rows, t, inside, times, constant)
        _, of_a, of_g = _gated(a, g, gate)
        of_g *= of_sum
        of_sum *= of_a
        tl.store(sums + (place + rows) * times + t, of_g, mask=inside)
        tl.store(totals + (place + rows) * blocks + b, tl.sum(tl.where(inside, of_g, 0.0), 0))
    tl.store(sums + place * times + t, of_sum, mask=inside)
    tl.store(totals + place * blocks + b, tl.sum(tl.where(inside, of_sum, 0.0), 0))


def _taps(weight: Tensor, seen: Tensor, dilation: int) -> list[tuple[Tensor, Tensor]]:
    """For every tap its matrix [N, O, C], the same for all samples, and the inputs [N, C, T] that it sees."""
    samples, _, length = seen.shape
    times = length - (weight.shape[2] - 1) * dilation
    matrices = weight.permute(2, 0, 1).contiguous()
    return [(m.expand(samples, -1, -1), seen.narrow(2, k * dilation, times)) for k, m in enumerate(matrices)]


def _sums(taps: list[tuple[Tensor, Tensor]]) -> Tensor:
    """[N, O, T], without bias and condition."""
    (matrix, inputs), *others = taps
    sums = torch.bmm(matrix, inputs)
    for matrix, inputs in others:
        sums.baddbmm_(matrix, inputs)
    return sums


def _sizes(sums: Tensor, gate: int) -> tuple[int, int, int]:
    return sums.shape[1] // (2 if gate else 1), sums.shape[2], triton.cdiv(sums.shape[2], BLOCK)


def _constants(gate: int, constant: bool) -> dict:
    return {"gate": gate, "constant": constant, "block": BLOCK, "num_warps": WARPS}


def _of_sums(sums: Tensor, bias: Tensor, condition: Tensor, gate: int) -> Tensor:
    """y; without a gate it takes the place of the sums."""
    rows, times, blocks = _sizes(sums, gate)
    y = sums.new_empty(len(sums), rows, times) if gate else sums
    if y.numel():
        causal_conv1d_kernel[(len(sums) * rows * blocks,)](
            y, sums, bias.contiguous(), condition.contiguous(), rows, times, blocks,
            **_constants(gate, condition.shape[2] == 1),
        )  # fmt: skip
    return y


def _pulled(
    grad: Tensor, sums: Tensor, taps: list[tuple[Tensor, Tensor]], x: Tensor, weight: Tensor, bias: Tensor,
    condition: Tensor, state: Tensor, dilation: int, gate: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of x, ``weight``, ``bias``, ``condition`` and ``state`` from that of y; writes over the sums."""
    constant = condition.shape[2] == 1
    rows, times, blocks = _sizes(sums, gate)
    totals = sums.new_empty(*sums.shape[:2], blocks)
    if grad.numel():
        causal_conv1d_backward_kernel[(len(x) * rows * blocks,)](
            totals, sums, grad.contiguous(), bias.contiguous(), condition.contiguous(), rows, times, blocks,
            **_constants(gate, constant),
        )  # fmt: skip
    grad_seen = x.new_zeros(*x.shape[:2], state.shape[2] + times)
    grad_weight = weight.new_empty(weight.shape)
    for k, (matrix, inputs) in enumerate(taps):
        grad_seen.narrow(2, k * dilation, times).baddbmm_(matrix.transpose(1, 2), sums)
        grad_weight[:, :, k] = torch.bmm(sums, inputs.transpose(1, 2)).sum(0)
    grad_state, grad_x = grad_seen.split([state.shape[2], times], 2)
    of_samples = totals.sum(2)
    grad_condition = of_samples[:, :, None] if constant else sums
    return grad_x.contiguous(), grad_weight, of_samples.sum(0), grad_condition, grad_state.contiguous()


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor, condition: Tensor, state: Tensor, dilation: int, gate: int
) -> Tensor:
    """See ``fastgen.ops.causal_conv1d``."""
    with torch.autocast(x.device.type, enabled=False):
        return _of_sums(_sums(_taps(weight, torch.cat([state, x], 2), dilation)), bias, condition, gate)


def causal_conv1d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, condition: Tensor, state: Tensor, dilation: int, gate: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, ``weight``, ``bias``, ``condition`` and ``state``."""
    with torch.autocast(x.device.type, enabled=False):
        taps = _taps(weight, torch.cat([state, x], 2), dilation)
        sums = _sums(taps) if gate else grad.new_empty(grad.shape)
        return _pulled(grad, sums, taps, x, weight, bias, condition, state, dilation, gate)


def _matrices(out_weight: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    """The weights of residual and skip, [N, R, H] and [N, S, H], the same for all samples."""
    samples, skips, _ = skip.shape
    residual, skip_weight = out_weight.expand(samples, -1, -1).split([len(out_weight) - skips, skips], 1)
    return residual, skip_weight


def _added(before: Tensor, weight: Tensor, y: Tensor) -> Tensor:
    """``before + weight y``, before being a tensor that may be written over, or [N, ., 1] for all times."""
    if before.shape[2] == y.shape[2]:
        return before.baddbmm_(weight, y)
    return torch.baddbmm(before, weight, y)


def causal_conv1d_residual(
    x: Tensor, weight: Tensor, bias: Tensor, condition: Tensor, state: Tensor, out_weight: Tensor, out_bias: Tensor,
    skip: Tensor, dilation: int, gate: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The residual and the skip of ``fastgen.ops.causal_conv1d``."""
    y = causal_conv1d(x, weight, bias, condition, state, dilation, gate)
    with torch.autocast(x.device.type, enabled=False):
        of_residual, of_skip = _matrices(out_weight, skip)
        residuals = of_residual.shape[1]
        residual = _added(x[:, :residuals] + out_bias[:residuals, None], of_residual, y)
        return residual, _added(skip + out_bias[residuals:, None], of_skip, y)


def causal_conv1d_residual_backward(
    grad: Tensor, grad_skip: Tensor, x: Tensor, weight: Tensor, bias: Tensor, condition: Tensor, state: Tensor,
    out_weight: Tensor, out_bias: Tensor, skip: Tensor, dilation: int, gate: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of x, ``weight``, ``bias``, ``condition``, ``state``, ``out_weight``, ``out_bias`` and ``skip``."""
    with torch.autocast(x.device.type, enabled=False):
        of_residual, of_skip = _matrices(out_weight, skip)
        taps = _taps(weight, torch.cat([state, x], 2), dilation)
        sums = _sums(taps)
        y = _of_sums(sums, bias, condition, gate)
        grad_y = torch.bmm(of_skip.transpose(1, 2), grad_skip).baddbmm_(of_residual.transpose(1, 2), grad)
        of_weight = torch.cat([torch.bmm(g, y.transpose(1, 2)).sum(0) for g in (grad, grad_skip)])
        grad_x, *others = _pulled(grad_y, sums, taps, x, weight, bias, condition, state, dilation, gate)
        of_samples = grad_skip.sum(2)
        of_bias = torch.cat([grad.sum((0, 2)), of_samples.sum(0)])
        of_before = of_samples[:, :, None] if skip.shape[2] == 1 else grad_skip.clone()
        return grad_x + grad if grad.shape[1] else grad_x, *others, of_weight, of_bias, of_before


_SIZES = {"rows": "i32", "times": "i32", "blocks": "i32"}

# what `make check-cuda` compiles: kernel, the types of its arguments, its constants and options
COMPILED = [
    (kernel, types | {"sums": "*fp32", "bias": "*fp32", "condition": "*fp32"} | _SIZES, _constants(gate, constant))
    for kernel, types in (
        (causal_conv1d_kernel, {"y": "*fp32"}),
        (causal_conv1d_backward_kernel, {"totals": "*fp32", "grad": "*fp32"}),
    )
    for gate in range(6)
    for constant in (False, True)
]
