"""The recurrence of PixelRNN, 16 images of 28 x 28: fastgen against the loop over steps, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastgen.ops import skew_lstm
from fastgen.reference import skew_lstm as reference

from ..suite.interleave import Provider, interleave
from ..suite.machine import keep_freed_memory, thread_counts
from ..suite.quick import size
from ..suite.report import Part, publish

pytestmark = pytest.mark.needs_extension
N, SIDE, ROUNDS = size((16, 28, 15), (2, 4, 1))
TAPS = {"Row LSTM": 3, "Diagonal LSTM": 2}
PRODUCTS = {"forward": 1, "forward and backward": 3}


def floor(operations: float, threads: int) -> Callable[[], float]:
    """Returns the seconds that so many multiplications and additions take at the peak measured now."""
    from fastgen import _C

    return lambda: operations / (_C.fma_peak(threads) * 1e9)


@pytest.mark.parametrize("hidden", size([16, 64], [3]))
@pytest.mark.parametrize("kind", TAPS)
@pytest.mark.parametrize("what", PRODUCTS)
@pytest.mark.benchmark(group="skew_lstm")
def bench_skew_lstm(benchmark, what, kind, hidden):
    torch.manual_seed(0)
    torch._dynamo.reset()
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    taps, backward = TAPS[kind], what != "forward"
    steps = SIDE if taps == 3 else 2 * SIDE - 1
    gates = torch.randn(N, 4 * hidden, steps, SIDE)
    weight = torch.randn(4 * hidden, hidden, taps) / (hidden * taps) ** 0.5
    state = torch.zeros(2, N, hidden, SIDE)

    def eager(gates: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return reference.skew_lstm(gates, weight, *state.to(gates.dtype))

    compiled = torch.compile(eager, fullgraph=True, dynamic=False)
    functions = {"reference, eager": eager, "reference, compiled": compiled, "fastgen": skew_lstm}
    exact = eager(gates.double(), weight.double())
    single = eager(gates, weight)
    for function in functions.values():
        for found, theirs, true in zip(function(gates, weight), single, exact, strict=True):
            assert (found - true).abs().max() <= 2 * (theirs - true).abs().max() + 1e-6
    for tensor in (gates, weight) if backward else ():
        tensor.requires_grad_()

    def call(function: Callable) -> Callable[[], object]:
        def run() -> object:
            with torch.set_grad_enabled(backward):
                h, c = function(gates, weight)
                return torch.autograd.grad(h.sum() + c.sum(), (gates, weight)) if backward else h

        return run

    operations = PRODUCTS[what] * 2.0 * weight.numel() * N * steps * SIDE
    providers = [
        Provider(name, call(function), 1, threads, floor=floor(operations, threads) if name == "fastgen" else None)
        for name, function in functions.items()
    ]
    interleave(benchmark, providers, ROUNDS)
    part = Part(
        f"skew_lstm-{kind.partition(' ')[0].lower()}-{hidden}-{what.replace(' ', '-')}",
        f"skew_lstm, {kind}, {N} x {SIDE} x {SIDE}, {hidden} hidden, {what}",
        "call",
    )
    part.add(providers, compared_with=providers[0])
    publish(part, benchmark)
