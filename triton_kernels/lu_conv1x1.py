"""The inverse of the LU-parameterised 1x1 convolution on the GPU: blocked substitution in both triangles."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, POSITIONS = 16, 64


@triton.jit
def _within_block(rhs, matrix, diagonal, start, channels, row_stride, column_stride, unit: tl.constexpr,
                  upper: tl.constexpr, rows: tl.constexpr):  # fmt: skip
    """The unknowns start .. start + rows of a triangle, those solved before being taken from ``rhs`` already."""
    row = tl.arange(0, rows)
    scale = tl.load(diagonal + start + row, mask=start + row < channels, other=1.0).to(tl.float32)
    count = tl.minimum(rows, channels - start)
    for step in range(count):
        r = count - 1 - step if upper else step
        known = row > r if upper else row < r
        at = (start + r) * row_stride + (start + row) * column_stride
        inside = start + tl.maximum(row, r) < channels
        weight = -tl.load(matrix + at, mask=known & inside, other=0.0).to(tl.float32)
        value = tl.sum(tl.where(row == r, 1.0, weight)[:, None] * rhs, 0)
        if not unit:
            value /= tl.sum(tl.where(row == r, scale, 0.0), 0)
        rhs = tl.where((row == r)[:, None], value[None, :], rhs)
    return rhs


@triton.jit
def _coefficients(matrix, start, first, channels, row_stride, column_stride, rows: tl.constexpr):
    row, column = start + tl.arange(0, rows), first + tl.arange(0, rows)
    inside = (row < channels)[:, None] & (column < channels)[None, :]
    at = row[:, None] * row_stride + column[None, :] * column_stride
    return tl.load(matrix + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["count", "channels", "positions"])
def lu_conv1x1_kernel(
    solved, between, given, source, lower, upper, diagonal, bias, count, channels, positions,
    transposed: tl.constexpr, keep: tl.constexpr, one_block: tl.constexpr, rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """x of P L U (x + bias) = y; or, transposed, y of (P L U)^T y = x. ``bias`` is 0 there.

    Unknowns stay in ``solved`` between the blocks; ``between`` gets the solution of the first triangle, if ``keep``.
    """
    q = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    at = q // positions * channels * positions + q % positions
    row = tl.arange(0, rows)
    inside = (q < count)[None, :]
    row_stride = 1 if transposed else channels
    column_stride = channels if transposed else 1
    down = upper if transposed else lower
    up = lower if transposed else upper
    blocks = (channels + rows - 1) // rows
    rhs = tl.zeros([rows, block], dtype=tl.float32)
    for b in range(blocks):
        start = b * rows
        real = start + row < channels
        channel = start + row if transposed else tl.load(source + start + row, mask=real, other=0)
        here = real[:, None] & inside
        rhs = tl.load(given + at[None, :] + channel[:, None] * positions, mask=here, other=0.0).to(tl.float32)
        for k in range(b):
            known = _coefficients(down, start, k * rows, channels, row_stride, column_stride, rows)
            slot = k * rows + row
            to = tl.load(source + slot, mask=slot < channels, other=0) if transposed else slot
            where = solved + at[None, :] + to[:, None] * positions
            value = tl.load(where, mask=(slot < channels)[:, None] & inside, other=0.0).to(tl.float32)
            rhs -= tl.dot(known, value, input_precision="ieee")
        rhs = _within_block(
            rhs, down, diagonal, start, channels, row_stride, column_stride, not transposed, False, rows
        )
        if keep:
            tl.store(between + at[None, :] + (start + row)[:, None] * positions, rhs, mask=here)
        if not one_block:
            to = tl.load(source + start + row, mask=real, other=0) if transposed else start + row
            tl.store(solved + at[None, :] + to[:, None] * positions, rhs, mask=here)
            tl.debug_barrier()
    for b in range(blocks):
        start = (blocks - 1 - b) * rows
        real = start + row < channels
        to = tl.load(source + start + row, mask=real, other=0) if transposed else start + row
        here = real[:, None] & inside
        where = solved + at[None, :] + to[:, None] * positions
        if not one_block:
            rhs = tl.load(where, mask=here, other=0.0).to(tl.float32)
        for k in range(blocks - b, blocks):
            known = _coefficients(up, start, k * rows, channels, row_stride, column_stride, rows)
            slot = k * rows + row
            later = tl.load(source + slot, mask=slot < channels, other=0) if transposed else slot
            beyond = solved + at[None, :] + later[:, None] * positions
            value = tl.load(beyond, mask=(slot < channels)[:, None] & inside, other=0.0).to(tl.float32)
            rhs -= tl.dot(known, value, input_precision="ieee")
        rhs = _within_block(rhs, up, diagonal, start, channels, row_stride, column_stride, transposed, True, rows)
        if one_block:
            rhs -= tl.load(bias + row, mask=real, other=0.0).to(tl.float32)[:, None]
        tl.store(where, rhs, mask=here)
        if not one_block:
            tl.debug_barrier()
    for b in range(0 if one_block else blocks):
        slot = b * rows + row
        here = (slot < channels)[:, None] & inside
        where = solved + at[None, :] + slot[:, None] * positions
        less = tl.load(bias + slot, mask=slot < channels, other=0.0).to(tl.float32)
        tl.store(where, tl.load(where, mask=here, other=0.0).to(tl.float32) - less[:, None], mask=here)


def _solve(
    given: Tensor,
    permutation: Tensor,
    lower: Tensor,
    upper: Tensor,
    diagonal: Tensor,
    bias: Tensor,
    transposed: bool = False,
    between: Tensor | None = None,
) -> Tensor:
    samples, channels, positions = given.shape
    if channels * max(channels, positions) >= 1 << 31:
        raise ValueError(
            f"a sample has {channels} channels and {positions} positions; the kernel on the GPU takes fewer than 2**31 "
            "elements a sample and a matrix"
        )
    solved = torch.empty_like(given)
    count = samples * positions
    if count:
        lu_conv1x1_kernel[(triton.cdiv(count, POSITIONS),)](
            solved, solved if between is None else between, given, permutation.argsort(), lower, upper, diagonal, bias,
            count, channels, positions, **_constants(transposed, between is not None, channels <= ROWS),
        )  # fmt: skip
    return solved


def _constants(transposed: bool, keep: bool, one_block: bool) -> dict:
    return {"transposed": transposed, "keep": keep, "one_block": one_block, "rows": ROWS, "block": POSITIONS}


def lu_conv1x1(y: Tensor, permutation: Tensor, lower: Tensor, upper: Tensor, diagonal: Tensor, bias: Tensor) -> Tensor:
    """See ``fastgen.ops.lu_conv1x1``: its inverse."""
    return _solve(*(t.contiguous() for t in (y, permutation, lower, upper, diagonal, bias)))


def lu_conv1x1_backward(
    grad: Tensor, y: Tensor, permutation: Tensor, lower: Tensor, upper: Tensor, diagonal: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of y, ``lower``, ``upper``, ``diagonal`` and ``bias``.

    With L a = P^T y, U x = a, and g the gradients, summed over positions: dL = -(P^T g_y) a^T below the diagonal,
    dU = -g_a x^T on it and above.
    """
    grad, y = grad.contiguous(), y.contiguous()
    factors = [*(t.contiguous() for t in (permutation, lower, upper, diagonal)), torch.zeros_like(bias)]
    a, grad_a = torch.empty_like(y), torch.empty_like(y)
    x = _solve(y, *factors, between=a)
    grad_y = _solve(grad, *factors, transposed=True, between=grad_a)
    with torch.autocast(grad.device.type, enabled=False):
        of_lower = _outer(grad_y, a)[permutation.argsort()]
        of_upper = _outer(grad_a, x)
    return grad_y, -of_lower.tril(-1), -of_upper.triu(1), -of_upper.diag(), -grad.sum((0, 2))


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """[C, C], summed over samples and positions."""
    return a.transpose(0, 1).flatten(1) @ b.transpose(0, 1).flatten(1).t()


# what `make check-cuda` compiles: kernel, the types of its arguments, its constants and options
COMPILED = [
    (
        lu_conv1x1_kernel,
        {"solved": "*fp32", "between": "*fp32", "given": "*fp32", "source": "*i64", "lower": "*fp32", "upper": "*fp32"}
        | {"diagonal": "*fp32", "bias": "*fp32", "count": "i64", "channels": "i32", "positions": "i32"},
        _constants(transposed, keep, one_block),
    )
    for transposed, keep in ((False, False), (False, True), (True, True))
    for one_block in (False, True)
]
