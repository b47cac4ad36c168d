"""WaveNet's gated convolution, 64 to 128 channels, 16,000 times: the kernel against eager and compiled PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen import _C
from fastgen.ops import causal_conv1d

from ..interleave import Provider, interleave
from ..machine import keep_freed_memory, thread_counts
from ..quick import QUICK, size
from ..report import Bar, Part, publish

pytestmark = pytest.mark.needs_extension
CHANNELS, OUTPUTS, TIMES, TAPS, DILATION = size(64, 3), size(128, 6), size(16000, 40), 2, size(16, 2)
ROUNDS = size(15, 1)


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    a, g = F.conv1d(F.pad(x, (DILATION, 0)), weight, bias, dilation=DILATION).chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(g)


def fastgen(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return causal_conv1d(x, weight, bias, dilation=DILATION, gate="tanh_sigmoid")[0]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward-backward"])
@pytest.mark.benchmark(group="causal_conv1d")
def bench_causal_conv1d(benchmark, backward, batch):
    torch.manual_seed(0)
    torch._dynamo.reset()
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    x = torch.randn(batch, CHANNELS, TIMES, requires_grad=backward)
    weight = (torch.randn(OUTPUTS, CHANNELS, TAPS) / (TAPS * CHANNELS) ** 0.5).requires_grad_(backward)
    bias = torch.randn(OUTPUTS, requires_grad=backward)
    along = torch.randn(batch, OUTPUTS // 2, TIMES)
    exact, single = plain(x.double(), weight.double(), bias.double()), plain(x, weight, bias)
    assert (fastgen(x, weight, bias) - exact).abs().max() <= 2 * (single - exact).abs().max() + 1e-6

    def call(function: Callable) -> Callable[[], object]:
        def forward() -> Tensor:
            return function(x, weight, bias)

        return (lambda: torch.autograd.grad(forward(), (x, weight, bias), along)) if backward else forward

    modes = size(("default", "max-autotune-no-cudagraphs"), ("default",))
    compiled = {f"torch.compile, {mode}": torch.compile(plain, dynamic=False, mode=mode) for mode in modes}
    products = (4 if backward else 1) * 2 * batch * TIMES * OUTPUTS * CHANNELS * TAPS
    providers = [Provider(n, call(f), 1, threads) for n, f in {"eager": plain, **compiled}.items()]
    providers.append(
        Provider("fastgen", call(fastgen), 1, threads, floor=lambda: products / (_C.fma_peak(threads) * 1e9))
    )
    interleave(benchmark, providers, ROUNDS)
    what = "forward and backward" if backward else "forward"
    title = f"causal_conv1d, tanh x sigmoid, {CHANNELS} to {OUTPUTS} channels, {TIMES:,} times, batch {batch}, {what}"
    part = Part(f"causal_conv1d-{batch}-{'backward' if backward else 'forward'}", title, "call")
    part.add(providers, compared_with=providers[0])
    if not QUICK:
        best = min(providers[1:-1], key=lambda p: p.seconds)
        part.bars = [Bar("over the best compiled one", 1.4, providers[-1].speedup_over(best))]
    publish(part, benchmark)
