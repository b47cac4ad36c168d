"""Counter-based uniform noise on the GPU: Philox4x32-10 in 32-bit arithmetic."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512
CONSTANTS = {"block": BLOCK, "enable_fp_fusion": False}


@triton.jit(do_not_specialize=["seed", "count", "blocks", "channel", "draw"])
def philox_uniform_kernel(noise, samples, positions, seed, count, blocks, channel, draw, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) // blocks
    column = tl.program_id(0).to(tl.int64) % blocks * block + tl.arange(0, block)
    inside = column < count
    sample = tl.load(samples + row)
    position = tl.load(positions + column, mask=inside, other=0)
    wide = tl.zeros([block], dtype=tl.int64)
    key0 = (wide + seed).to(tl.uint32)
    key1 = (wide + sample).to(tl.uint32)
    c0 = position.to(tl.uint32)
    c1 = (((position >> 32) & 0xFFFF) | (wide + channel << 16)).to(tl.uint32)
    c2 = (wide + seed >> 32).to(tl.uint32)
    c3 = ((wide + sample >> 32 & 0xFFFF) | (wide + draw << 16)).to(tl.uint32)
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high1, low1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0 += 0x9E3779B9
        key1 += 0xBB67AE85
    k = (c1.to(tl.int64) << 20) | (c0 >> 12).to(tl.int64)
    tl.store(noise + row * count + column, (k.to(tl.float64) + 0.5) * 2.220446049250313e-16, mask=inside)


def philox_uniform(seed: int, samples: Tensor, positions: Tensor, channel: int, draw: int) -> Tensor:
    """See ``fastgen.ops.philox_uniform``."""
    noise = samples.new_empty((samples.shape[0], positions.shape[0]), dtype=torch.float64)
    if noise.numel():
        count = positions.shape[0]
        blocks = triton.cdiv(count, BLOCK)
        tensors = noise, samples.contiguous(), positions.contiguous()
        philox_uniform_kernel[(blocks * samples.shape[0],)](*tensors, seed, count, blocks, channel, draw, **CONSTANTS)
    return noise


# what `make check-cuda` compiles: kernel, the types of its arguments, its constants and options
COMPILED = [
    (
        philox_uniform_kernel,
        {"noise": "*fp64", "samples": "*i64", "positions": "*i64"}
        | {"seed": "i64", "count": "i64", "blocks": "i64", "channel": "i32", "draw": "i32"},
        CONSTANTS,
    )
]
