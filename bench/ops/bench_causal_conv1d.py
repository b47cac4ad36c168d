"""WaveNet's gated convolution, 64 to 128 channels, 16,000 times, alone and with 64 residual and 256 skip channels.

The kernel against eager and compiled PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen import _C
from fastgen.ops import causal_conv1d

from ..suite.interleave import Provider, interleave
from ..suite.machine import keep_freed_memory, thread_counts
from ..suite.quick import QUICK, size
from ..suite.report import Bar, Part, publish

pytestmark = pytest.mark.needs_extension
CHANNELS, OUTPUTS, SKIPS = size(64, 3), size(128, 6), size(256, 5)
TIMES, TAPS, DILATION = size(16000, 40), 2, size(16, 2)
ROUNDS = size(15, 1)


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    a, g = F.conv1d(F.pad(x, (DILATION, 0)), weight, bias, dilation=DILATION).chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(g)


def fastgen(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return causal_conv1d(x, weight, bias, dilation=DILATION, gate="tanh_sigmoid")[0]


def plain_block(x: Tensor, weight: Tensor, bias: Tensor, *out: Tensor) -> tuple[Tensor, Tensor]:
    residual_weight, residual_bias, skip_weight, skip_bias = out
    y = plain(x, weight, bias)
    residual = x + F.conv1d(y, residual_weight[:, :, None], residual_bias)
    return residual, F.conv1d(y, skip_weight[:, :, None], skip_bias)


def fastgen_block(x: Tensor, weight: Tensor, bias: Tensor, *out: Tensor) -> tuple[Tensor, Tensor]:
    names = ("residual_weight", "residual_bias", "skip_weight", "skip_bias")
    given = dict(zip(names, out, strict=True))
    return causal_conv1d(x, weight, bias, dilation=DILATION, gate="tanh_sigmoid", **given)[:2]


@pytest.mark.parametrize("block", [False, True], ids=["gate", "block"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward-backward"])
@pytest.mark.benchmark(group="causal_conv1d")
def bench_causal_conv1d(benchmark, backward, batch, block):
    torch.manual_seed(0)
    torch._dynamo.reset()
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    theirs, ours = (plain_block, fastgen_block) if block else (plain, fastgen)
    x = torch.randn(batch, CHANNELS, TIMES, requires_grad=backward)
    weights = [torch.randn(OUTPUTS, CHANNELS, TAPS) / (TAPS * CHANNELS) ** 0.5, torch.randn(OUTPUTS)]
    for rows in (CHANNELS, SKIPS) if block else ():
        weights += [torch.randn(rows, OUTPUTS // 2) / (OUTPUTS // 2) ** 0.5, torch.randn(rows)]
    given = [x, *[weight.requires_grad_(backward) for weight in weights]]
    exact, single = outputs(theirs, [t.double() for t in given]), outputs(theirs, given)
    for mine, near, true in zip(outputs(ours, given), single, exact, strict=True):
        assert (mine - true).abs().max() <= 2 * (near - true).abs().max() + 1e-6
    along = [torch.randn_like(t) for t in single]

    def call(function: Callable) -> Callable[[], object]:
        return (
            (lambda: torch.autograd.grad(outputs(function, given), given, along))
            if backward
            else lambda: function(*given)
        )

    modes = size(("default", "max-autotune-no-cudagraphs"), ("default",))
    compiled = {f"torch.compile, {mode}": torch.compile(theirs, dynamic=False, mode=mode) for mode in modes}
    multiplied = OUTPUTS * CHANNELS * TAPS
    after = (CHANNELS + SKIPS) * OUTPUTS // 2 if block else 0  # in the backward the sums once more, and not these
    products = 2 * batch * TIMES * ((4 if backward else 1) * multiplied + (3 if backward else 1) * after)
    providers = [Provider(n, call(f), 1, threads) for n, f in {"eager": theirs, **compiled}.items()]
    providers.append(Provider("fastgen", call(ours), 1, threads, floor=lambda: products / (_C.fma_peak(threads) * 1e9)))
    interleave(benchmark, providers, ROUNDS)
    what = "residual and skip, " if block else ""
    what = f"tanh x sigmoid, {what}{CHANNELS} to {OUTPUTS} channels, {TIMES:,} times, batch {batch}"
    title = f"causal_conv1d, {what}, {'forward and backward' if backward else 'forward'}"
    name = f"causal_conv1d-{'block-' if block else ''}{batch}-{'backward' if backward else 'forward'}"
    part = Part(name, title, "call")
    part.add(providers, compared_with=providers[0])
    if not QUICK and not block:
        best = min(providers[1:-1], key=lambda p: p.seconds)
        part.bars = [Bar("over the best compiled one", 1.4, providers[-1].speedup_over(best))]
    publish(part, benchmark)


def outputs(function: Callable, given: list[Tensor]) -> list[Tensor]:
    found = function(*given)
    return [found] if isinstance(found, Tensor) else list(found)
