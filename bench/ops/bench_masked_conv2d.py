"""Masked convolution, 32 x 32, batch 16: what the mask leaves against the dense masked convolution of the textbook."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen import _C
from fastgen.ops import masked_conv2d
from fastgen.reference.masked_conv2d import causal_mask

from ..suite.interleave import Provider, interleave
from ..suite.machine import keep_freed_memory, thread_counts
from ..suite.quick import QUICK, size
from ..suite.report import Bar, Part, publish

pytestmark = pytest.mark.needs_extension
BATCH, SIDE, ROUNDS = size(16, 2), size(32, 5), size(9, 1)
BARS = {3: 1.25, 7: 1.5}


def dense(x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """Convolves with the whole k x k kernel times its mask."""
    return F.conv2d(x, weight * mask, padding=weight.shape[2] // 2)


def forward(function: Callable, *arguments: Tensor) -> Tensor:
    return function(*arguments)


def forward_and_backward(function: Callable, *arguments: Tensor) -> tuple[Tensor, ...]:
    y = function(*arguments)
    return torch.autograd.grad(y, [a for a in arguments if a.requires_grad], torch.ones_like(y))


@pytest.mark.parametrize(("run", "passes"), [(forward, 1), (forward_and_backward, 3)])
@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("channels", size([64, 128], [4]))
@pytest.mark.benchmark(group="masked_conv2d")
def bench_masked_conv2d(benchmark, channels, kernel, run, passes):
    torch.manual_seed(0)
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    rows = kernel // 2 + 1
    mask = causal_mask("B", (channels, channels, rows, kernel), 1)
    full_mask = F.pad(mask, (0, 0, 0, kernel - rows))
    needs_gradient = run is forward_and_backward
    x = torch.randn(BATCH, channels, SIDE, SIDE, requires_grad=needs_gradient)
    weight = torch.randn(channels, channels, kernel, kernel, requires_grad=needs_gradient)
    cropped = weight[:, :, :rows].detach().clone().requires_grad_(needs_gradient)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return masked_conv2d(x, weight, mask=mask)

    exact = dense(x.detach().double(), weight.detach().double(), full_mask.double())
    allowed = 2 * (dense(x, weight, full_mask) - exact).abs().max()
    assert (ours(x, cropped) - exact).abs().max() <= allowed
    compiled = torch.compile(dense, fullgraph=True, dynamic=False)
    least = passes * 2 * BATCH * SIDE**2 * channels**2 * (kernel**2 // 2 + 1)  # multiplications and additions
    title = "dense masked convolution"
    providers = [
        Provider(f"{title}, eager", lambda: run(dense, x, weight, full_mask), 1, threads),
        Provider(f"{title}, compiled", lambda: run(compiled, x, weight, full_mask), 1, threads),
        Provider(
            "fastgen", lambda: run(ours, x, cropped), 1, threads, floor=lambda: least / _C.fma_peak(threads) / 1e9
        ),
    ]
    interleave(benchmark, providers, ROUNDS)
    what = run.__name__.replace("_", " ")
    named = f"masked_conv2d, {channels} channels, {kernel} x {kernel}, {what}"
    part = Part(f"masked_conv2d-{channels}-{kernel}-{run.__name__}", named, "call")
    part.add(providers, compared_with=providers[0])
    if not QUICK:
        part.bars = [Bar(f"over the {title}", BARS[kernel], providers[2].speedup_over(providers[0]))]
    publish(part, benchmark)
