"""The cells of the Row LSTM and of the Diagonal BiLSTM on the GPU: a step is a matrix product and one kernel.

The product's operand has a row for each tap and unit, ``columns`` [k H, N L]: h shifted by the tap, zero beyond the
ends. A cell kernel writes h into it for the step after, so nothing is gathered between the two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._math import sigmoid, tanh

BLOCK = 256


@triton.jit
def _places(step, samples, hidden, steps, positions, block: tl.constexpr):
    """Of the elements [hidden, samples, positions]: place in a product, position, place in [N, H, R, L], of gate i."""
    e = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    width = samples.to(tl.int64) * positions
    unit, place = e // width, e % width
    n, position = place // positions, place % positions
    in_steps = ((n * hidden + unit) * steps + step) * positions + position
    in_gates = ((n * 4 * hidden + unit) * steps + step) * positions + position
    return e, position, in_steps, in_gates


@triton.jit(do_not_specialize=["step", "samples", "hidden", "steps", "positions", "taps"])
def skew_lstm_kernel(
    h, columns, activations, cells, gates, product, step, samples, hidden, steps, positions, taps,
    keep: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    e, position, in_steps, in_gates = _places(step, samples, hidden, steps, positions, block)
    size = hidden.to(tl.int64) * samples * positions
    inside, quarter = e < size, hidden.to(tl.int64) * steps * positions
    i = tl.load(gates + in_gates, mask=inside, other=0.0).to(tl.float32)
    f = tl.load(gates + in_gates + quarter, mask=inside, other=0.0).to(tl.float32)
    o = tl.load(gates + in_gates + 2 * quarter, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gates + in_gates + 3 * quarter, mask=inside, other=0.0).to(tl.float32)
    i = sigmoid(i + tl.load(product + e, mask=inside, other=0.0).to(tl.float32))
    f = sigmoid(f + tl.load(product + e + size, mask=inside, other=0.0).to(tl.float32))
    o = sigmoid(o + tl.load(product + e + 2 * size, mask=inside, other=0.0).to(tl.float32))
    g = tanh(g + tl.load(product + e + 3 * size, mask=inside, other=0.0).to(tl.float32))
    before = cells + (step % 2) * size * (1 - keep) + step * size * keep
    after = cells + ((step + 1) % 2) * size * (1 - keep) + (step + 1) * size * keep
    cell = f * tl.load(before + e, mask=inside, other=0.0).to(tl.float32) + i * g
    out = o * tanh(cell)
    tl.store(after + e, cell, mask=inside)
    tl.store(h + in_steps, out, mask=inside)
    if keep:
        tl.store(activations + in_gates, i, mask=inside)
        tl.store(activations + in_gates + quarter, f, mask=inside)
        tl.store(activations + in_gates + 2 * quarter, o, mask=inside)
        tl.store(activations + in_gates + 3 * quarter, g, mask=inside)
    for tap in range(taps):
        target = position + taps // 2 - tap
        reached = inside & (target >= 0) & (target < positions)
        tl.store(columns + tap * size + e + taps // 2 - tap, out, mask=reached)


@triton.jit(do_not_specialize=["step", "samples", "hidden", "steps", "positions", "taps"])
def skew_lstm_backward_kernel(
    grad_gates, grad_sums, carried, grad_h, pulled, cells, step, samples, hidden, steps, positions, taps,
    block: tl.constexpr,
):  # fmt: skip
    e, position, in_steps, in_gates = _places(step, samples, hidden, steps, positions, block)
    size = hidden.to(tl.int64) * samples * positions
    inside, quarter = e < size, hidden.to(tl.int64) * steps * positions
    i = tl.load(grad_gates + in_gates, mask=inside, other=0.0).to(tl.float32)
    f = tl.load(grad_gates + in_gates + quarter, mask=inside, other=0.0).to(tl.float32)
    o = tl.load(grad_gates + in_gates + 2 * quarter, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad_gates + in_gates + 3 * quarter, mask=inside, other=0.0).to(tl.float32)
    of_h = tl.load(grad_h + in_steps, mask=inside, other=0.0).to(tl.float32)
    for tap in range(taps):
        source = position + taps // 2 - tap
        reached = inside & (source >= 0) & (source < positions)
        of_h += tl.load(pulled + tap * size + e + taps // 2 - tap, mask=reached, other=0.0).to(tl.float32)
    before = tl.load(cells + step * size + e, mask=inside, other=0.0).to(tl.float32)
    bounded = tanh(tl.load(cells + (step + 1) * size + e, mask=inside, other=0.0).to(tl.float32))
    of_c = tl.load(carried + e, mask=inside, other=0.0).to(tl.float32)
    of_c += of_h * o * ((1.0 - bounded) * (1.0 + bounded))
    tl.store(carried + e, of_c * f, mask=inside)
    of_i = of_c * g * (i * (1.0 - i))
    of_f = of_c * before * (f * (1.0 - f))
    of_o = of_h * bounded * (o * (1.0 - o))
    of_g = of_c * i * ((1.0 - g) * (1.0 + g))
    tl.store(grad_gates + in_gates, of_i, mask=inside)
    tl.store(grad_gates + in_gates + quarter, of_f, mask=inside)
    tl.store(grad_gates + in_gates + 2 * quarter, of_o, mask=inside)
    tl.store(grad_gates + in_gates + 3 * quarter, of_g, mask=inside)
    tl.store(grad_sums + e, of_i, mask=inside)
    tl.store(grad_sums + e + size, of_f, mask=inside)
    tl.store(grad_sums + e + 2 * size, of_o, mask=inside)
    tl.store(grad_sums + e + 3 * size, of_g, mask=inside)


def _by_unit(x: Tensor) -> Tensor:
    """[N, C, ...] to [C, N ...]."""
    return x.transpose(0, 1).flatten(1).contiguous()


def _by_sample(x: Tensor, like: Tensor) -> Tensor:
    """[C, N L] to [N, C, L]."""
    return x.unflatten(1, (like.shape[0], like.shape[2])).transpose(0, 1).contiguous()


def _shifted(h: Tensor, taps: int) -> Tensor:
    """[N, H, ..., L] to [k H, N ... L]: row (tap, unit) is h at the tap of every position."""
    padded = torch.nn.functional.pad(h, (taps // 2, taps - 1 - taps // 2))
    return torch.cat([_by_unit(padded[..., tap : tap + h.shape[-1]]) for tap in range(taps)])


def _flat(weight: Tensor) -> Tensor:
    """[4 H, k H]."""
    return weight.transpose(1, 2).flatten(1).contiguous()


def _sizes(gates: Tensor, weight: Tensor) -> tuple[int, ...]:
    return gates.shape[0], gates.shape[1] // 4, gates.shape[2], gates.shape[3], weight.shape[2]


def _run(gates: Tensor, weight: Tensor, h0: Tensor, c0: Tensor, activations: Tensor | None) -> tuple[Tensor, Tensor]:
    """h of all steps and c [2 or R + 1, H, N L] of the last two, or of all where the gates are kept."""
    samples, hidden, steps, positions, taps = _sizes(gates, weight)
    flat, columns = _flat(weight), _shifted(h0, taps)
    h = gates.new_empty(samples, hidden, steps, positions)
    cells = gates.new_empty(2 if activations is None else steps + 1, hidden, samples * positions)
    cells[0] = _by_unit(c0)
    product = gates.new_empty(4 * hidden, samples * positions)
    grid = (triton.cdiv(h0.numel(), BLOCK),)
    for step in range(steps if h0.numel() else 0):
        torch.mm(flat, columns, out=product)
        skew_lstm_kernel[grid](
            h, columns, h if activations is None else activations, cells, gates, product, step,
            samples, hidden, steps, positions, taps, keep=activations is not None, block=BLOCK,
        )  # fmt: skip
    return h, cells


def skew_lstm(gates: Tensor, weight: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor]:
    """See ``fastgen.ops.skew_lstm``."""
    with torch.autocast(gates.device.type, enabled=False):
        h, cells = _run(gates.contiguous(), weight, h0, c0, None)
        return h, _by_sample(cells[gates.shape[2] % 2], c0)


def skew_lstm_backward(
    grad_h: Tensor, grad_c: Tensor, gates: Tensor, weight: Tensor, h0: Tensor, c0: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of ``gates``, ``weight``, ``h0`` and ``c0``; the cell's gates lie where their gradients will."""
    gates, grad_h = gates.contiguous(), grad_h.contiguous()
    samples, hidden, steps, positions, taps = _sizes(gates, weight)
    grad_gates, carried = torch.empty_like(gates), _by_unit(grad_c)
    with torch.autocast(gates.device.type, enabled=False):
        h, cells = _run(gates, weight, h0, c0, grad_gates)
        flat = _flat(weight).t()
        pulled = gates.new_zeros(taps * hidden, samples * positions)
        sums = gates.new_empty(4 * hidden, samples * positions)
        for step in reversed(range(steps if h0.numel() else 0)):
            skew_lstm_backward_kernel[(triton.cdiv(h0.numel(), BLOCK),)](
                grad_gates, sums, carried, grad_h, pulled, cells, step,
                samples, hidden, steps, positions, taps, block=BLOCK,
            )  # fmt: skip
            torch.mm(flat, sums, out=pulled)
        before = torch.cat([h0.unsqueeze(2), h[:, :, :-1]], 2)
        grad_weight = _by_unit(grad_gates) @ _shifted(before, taps).t()
    pulled = pulled.reshape(taps, hidden, samples, positions)
    padded = torch.nn.functional.pad(pulled, (taps - 1 - taps // 2, taps // 2))
    starts = range(taps - 1, -1, -1)
    grad_h0 = sum(padded[tap, ..., start : start + positions] for tap, start in enumerate(starts))
    grad_weight = grad_weight.unflatten(1, (taps, hidden)).transpose(1, 2).contiguous()
    return grad_gates, grad_weight, grad_h0.transpose(0, 1).contiguous(), _by_sample(carried, c0)


_SIZES = {"step": "i32", "samples": "i32", "hidden": "i32", "steps": "i32", "positions": "i32", "taps": "i32"}

# what `make check-cuda` compiles: kernel, the types of its arguments, its constants and options
COMPILED = [
    (
        skew_lstm_kernel,
        {"h": "*fp32", "columns": "*fp32", "activations": "*fp32", "cells": "*fp32", "gates": "*fp32"}
        | {"product": "*fp32"}
        | _SIZES,
        {"keep": keep, "block": BLOCK},
    )
    for keep in (False, True)
] + [
    (
        skew_lstm_backward_kernel,
        {"grad_gates": "*fp32", "grad_sums": "*fp32", "carried": "*fp32", "grad_h": "*fp32", "pulled": "*fp32"}
        | {"cells": "*fp32"}
        | _SIZES,
        {"block": BLOCK},
    )
]
