"""Monotone cubic spline of 262,144 elements with 8 bins: the kernel against eager PyTorch and torch.compile."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastgen.ops import cubic_spline
from fastgen.reference import cubic_spline as reference

from ..interleave import Provider, interleave
from ..machine import keep_freed_memory, thread_counts
from ..quick import QUICK, size
from ..report import Bar, Part, publish

pytestmark = pytest.mark.needs_extension
ROWS, WIDTH, ROUNDS = size(4096, 16), size(64, 3), size(9, 1)
COUNT = 2 * 8 + 2
NUMBERS = (-3.0, 3.0, -3.0, 3.0, 1e-3, 1e-3)  # on [-3, 3]
BYTES = {"forward": 4 * (3 + COUNT), "inverse": 4 * (3 + COUNT), "forward and backward": 4 * (7 + 3 * COUNT)}


def with_gradients(function: Callable, x: Tensor, parameters: Tensor) -> tuple[Tensor, ...]:
    y, log_det = function(x, parameters)
    return torch.autograd.grad((y, log_det), (x, parameters), (torch.ones_like(y), torch.ones_like(log_det)))


def plain(function: Callable, x: Tensor, parameters: Tensor) -> tuple[Tensor, ...]:
    return function(x, parameters)


def copy_seconds(count: int) -> float:
    """Seconds for a byte read or written, by the best of a few copies of so many bytes."""
    source, target = torch.ones(count // 4), torch.empty(count // 4)
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - begin)
    return best / (2 * count)


@pytest.mark.parametrize("what", BYTES)
@pytest.mark.benchmark(group="cubic_spline")
def bench_cubic_spline(benchmark, what):
    torch.manual_seed(0)
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    inverse, gradients = what == "inverse", what == "forward and backward"
    x = (2 * torch.randn(ROWS, WIDTH)).requires_grad_(gradients)
    parameters = torch.randn(ROWS, WIDTH, COUNT).requires_grad_(gradients)
    run = with_gradients if gradients else plain

    def eager(x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return reference.cubic_spline(x, parameters, inverse, *NUMBERS)

    def ours(x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return cubic_spline(x, parameters, inverse=inverse)

    exact = eager(x.detach().double(), parameters.detach().double())
    for single, mine, true in zip(eager(x, parameters), ours(x, parameters), exact, strict=True):
        assert (mine - true).abs().max() <= 2 * (single - true).abs().max() + 1e-6
    modes = {
        "torch.compile": torch.compile(eager, fullgraph=True, dynamic=False),
        "torch.compile, max-autotune": torch.compile(
            eager, fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs"
        ),
    }
    count = BYTES[what] * x.numel()
    providers = [
        Provider("reference, eager", lambda: run(eager, x, parameters), 1, threads),
        *(Provider(name, lambda f=f: run(f, x, parameters), 1, threads) for name, f in modes.items()),
        Provider("fastgen", lambda: run(ours, x, parameters), 1, threads, floor=lambda: count * copy_seconds(count)),
    ]
    interleave(benchmark, providers, ROUNDS)
    part = Part(
        f"cubic_spline-{what.replace(' ', '-')}", f"cubic_spline, {x.numel():,} elements, 8 bins, {what}", "call"
    )
    part.add(providers, compared_with=providers[0])
    if not QUICK:
        best = min(providers[1:3], key=lambda p: p.seconds)
        part.bars = [
            Bar(f"over {best.name}", 8, providers[-1].speedup_over(best)),
            Bar("over eager", 25, providers[-1].speedup_over(providers[0])),
        ]
    publish(part, benchmark)
