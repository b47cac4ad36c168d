"""The trace of 16 probes at batch 1,024: as a callable and as a dense field, against a loop and ``torch.func.vmap``."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from fastgen import _C
from fastgen.nn import MLPField
from fastgen.ops import hutchinson_trace
from fastgen.reference import hutchinson_trace as reference

from ..interleave import Provider, interleave
from ..machine import keep_freed_memory, thread_counts
from ..quick import QUICK, size
from ..report import Bar, Part, publish

pytestmark = pytest.mark.needs_extension
BATCH, PROBES = size(1024, 6), size(16, 5)
SIZES = {
    "2-64-64-64-2": (size((2, 64, 64, 64, 2), (2, 4, 4, 4, 2)), 2.5),
    "64-64-64-64-64": (size((64, 64, 64, 64, 64), (7, 4, 4, 4, 7)), 2.5),
    "784-256-256-784": (size((784, 256, 256, 784), (9, 5, 5, 9)), 1.2),
}
TIME = 0.3


class Textbook(nn.Module):
    """The field as public code has it, one layer after the other."""

    def __init__(self, field: MLPField) -> None:
        super().__init__()
        self.field = field

    def forward(self, x: Tensor) -> Tensor:
        field, now = self.field, torch.full((1, 1), TIME, dtype=x.dtype)
        for i, layer in enumerate(field.layers):
            x = layer(torch.cat([now.expand(len(x), 1), x], 1) if field.time == "concat" else x)
            if field.time == "concat-squash":
                x = x * torch.sigmoid(field.gates[i](now)) + field.shifts[i](now)
            if i + 1 < len(field.layers):
                x = torch.tanh(x)
        return x


def loop(f: Callable, x: Tensor, noise: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y, total = f(x), torch.zeros(len(x), dtype=x.dtype)
        for v in noise:
            (product,) = torch.autograd.grad(y, x, v, create_graph=training, retain_graph=True)
            total = total + (product * v).sum(1)
    return y, total / len(noise)


def vmap(f: Callable, x: Tensor, noise: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    y, pull = torch.func.vjp(f, x)
    (products,) = torch.func.vmap(pull)(noise)
    return y, (products * noise).sum(2).mean(0)


def ours(f: Callable, x: Tensor, noise: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    return hutchinson_trace(f, x, probes=len(noise), noise=noise)


def operations(sizes: tuple[int, ...], training: bool) -> int:
    """Multiplications and additions at least: no more than D products through every layer, and what trains on them."""
    layers = [a * b for a, b in pairwise(sizes)]
    each = sum(layers) * (2 if training else 1) + (sum(layers[1:-1]) if training else 0)
    return 2 * BATCH * min(PROBES, sizes[0]) * each


@pytest.mark.parametrize("training", [False, True], ids=["value", "training"])
@pytest.mark.parametrize("time", ["none", "concat", "concat-squash"])
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.benchmark(group="hutchinson_trace")
def bench_hutchinson_trace(benchmark, name, time, training):
    torch.manual_seed(0)
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    sizes, needed = SIZES[name]
    field = MLPField(sizes, time=time)
    textbook, parameters = Textbook(field), list(field.parameters())
    x, noise = torch.randn(BATCH, sizes[0]), (torch.rand(PROBES, BATCH, sizes[0]) - 0.5).sign()
    shared = noise[:, :1].contiguous()

    def given(f: Callable, estimate: Callable, noise: Tensor = noise) -> Callable[[], tuple[Tensor, ...]]:
        def call() -> tuple[Tensor, ...]:
            with torch.set_grad_enabled(training):
                y, trace = estimate(f() if f is at_time else f, x, noise, training)
                if not training:
                    return y, trace
                return y, trace, *torch.autograd.grad(y.sum() + trace.sum(), parameters, materialize_grads=True)

        return call

    def at_time():
        return field.at(TIME)

    calls = {
        "loop of autograd.grad": given(textbook, loop),
        "torch.func.vmap": given(textbook, vmap),
        "fastgen, any callable": given(textbook, ours),
        "fastgen, the field": given(at_time, ours),
    }
    y, total = reference.hutchinson_trace(textbook.double(), x.double(), noise.double(), noise.double())
    exact = [y, total / PROBES]
    exact += torch.autograd.grad(y.sum() + exact[1].sum(), parameters, materialize_grads=True) if training else []
    exact = [t.detach() for t in exact]
    textbook.float()
    for call in calls.values():
        for found, true in zip(call(), exact, strict=True):
            assert (found - true).abs().max() <= 1e-4 * (1 + true.abs().max())
    calls["fastgen, the field, noise shared in the batch"] = given(at_time, ours, shared)
    least = operations(sizes, training)
    floors = {"fastgen, the field": lambda: least / _C.fma_peak(threads) / 1e9}
    providers = [Provider(what, call, 1, threads, floor=floors.get(what)) for what, call in calls.items()]
    interleave(benchmark, providers, size(5 if name.startswith("784") else 15, 1))
    way = "value and gradient of all parameters" if training else "value"
    part = Part(
        f"hutchinson_trace-{name}-{time}-{'training' if training else 'value'}",
        f"hutchinson_trace, {PROBES} probes, {name}, time {time}, batch {BATCH:,}, {way}",
        "call",
    )
    part.add(providers, compared_with=providers[0])
    if not QUICK:
        fastest = min(providers[:2], key=lambda p: p.seconds)
        part.bars = [
            Bar(f"any callable, over the faster other ({fastest.name})", 1, providers[2].speedup_over(fastest)),
            Bar(
                f"the field as such, over the faster other ({fastest.name})", needed, providers[3].speedup_over(fastest)
            ),
        ]
    publish(part, benchmark)
