"""Nearest code of a codebook on the GPU: tiles of nearness that are reduced where they are made."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, CODES, WIDTH = 32, 32, 16
CONSTANTS = {"block_rows": ROWS, "block_codes": CODES, "block_width": WIDTH}


@triton.jit
def vector_quantize_kernel(
    codes,
    quantized,
    counts,
    sums,
    x,
    codebook,
    centre,
    centred,
    rows,
    count,
    width,
    block_rows: tl.constexpr,
    block_codes: tl.constexpr,
    block_width: tl.constexpr,
):
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    row_start = row.to(tl.int64) * width
    most = tl.full([block_rows], float("-inf"), dtype=tl.float32)
    best = tl.zeros([block_rows], dtype=tl.int32)
    for first in range(0, count, block_codes):
        code = first + tl.arange(0, block_codes)
        code_start = code.to(tl.int64) * width
        nearness = tl.zeros([block_rows, block_codes], dtype=tl.float32)
        square = tl.zeros([block_codes], dtype=tl.float32)
        for start in range(0, width, block_width):
            d = start + tl.arange(0, block_width)
            inside = d < width
            middle = tl.load(centre + d, mask=inside, other=0.0)[None, :]
            a = tl.load(
                x + row_start[:, None] + d[None, :], mask=(row < rows)[:, None] & inside[None, :], other=0.0
            ).to(tl.float32)
            a -= middle  # an offset that all data have would cancel
            e = tl.load(
                centred + code_start[:, None] + d[None, :], mask=(code < count)[:, None] & inside[None, :], other=0.0
            ).to(tl.float32)
            nearness += tl.dot(a, tl.trans(e), input_precision="ieee")
            square += tl.sum(e * e, axis=1)
        nearness = tl.where((code < count)[None, :], nearness - square[None, :] / 2, float("-inf"))
        here = tl.max(nearness, axis=1)
        where = first + tl.argmax(nearness, axis=1).to(tl.int32)
        best = tl.where(here > most, where, best)
        most = tl.maximum(most, here)
    tl.store(codes + row, best.to(tl.int64), mask=row < rows)
    tl.atomic_add(counts + best, 1.0, mask=row < rows)
    for start in range(0, width, block_width):
        d = start + tl.arange(0, block_width)
        inside = (row < rows)[:, None] & (d < width)[None, :]
        of_code = best.to(tl.int64)[:, None] * width + d[None, :]
        at = row_start[:, None] + d[None, :]
        tl.store(quantized + at, tl.load(codebook + of_code, mask=inside, other=0.0), mask=inside)
        tl.atomic_add(sums + of_code, tl.load(x + at, mask=inside, other=0.0), mask=inside)


def vector_quantize(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``fastgen.ops.vector_quantize``. The sums are added in no fixed order."""
    x, codebook = x.contiguous(), codebook.contiguous()
    rows, (count, width) = x.shape[0], codebook.shape
    if rows > (1 << 31) - ROWS:  # 64 bits for the row's number spill registers
        raise ValueError(f"x has {rows} rows; the kernel on the GPU takes {(1 << 31) - ROWS} at most")
    codes, quantized = x.new_empty(rows, dtype=torch.int64), torch.empty_like(x)
    counts, sums = x.new_zeros(count), torch.zeros_like(codebook)
    if rows:
        variance, mean = torch.var_mean(codebook, 0, correction=0)
        centre = torch.where(mean.square() > variance, mean, 0.0)
        vector_quantize_kernel[(triton.cdiv(rows, ROWS),)](
            codes, quantized, counts, sums, x, codebook, centre, codebook - centre, rows, count, width, **CONSTANTS
        )
    return codes, quantized, counts, sums


# what `make check-cuda` compiles: kernel, the types of its arguments, its constants and options
COMPILED = [
    (
        vector_quantize_kernel,
        {"codes": "*i64", "quantized": "*fp32", "counts": "*fp32", "sums": "*fp32", "x": "*fp32", "codebook": "*fp32"}
        | {"centre": "*fp32", "centred": "*fp32", "rows": "i32", "count": "i32", "width": "i32"},
        CONSTANTS,
    )
]
