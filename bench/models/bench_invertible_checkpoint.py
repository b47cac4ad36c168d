"""A training step of a stack of Glow's steps: plain, with ``torch.utils.checkpoint``, with ``invertible_checkpoint``.

Peak memory is of everything that the step holds at once beside the weights: activations and gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastgen.nn import AffineCoupling, FlowSequential, InvertibleConv1x1, invertible_checkpoint

from ..suite.interleave import Provider, interleave
from ..suite.machine import keep_freed_memory, thread_counts
from ..suite.memory import peak_mebibytes
from ..suite.quick import QUICK, size
from ..suite.report import Bar, Part, publish
from .bench_glow import CHANNELS, SHAPE, Network

pytestmark = [pytest.mark.needs_extension, pytest.mark.filterwarnings("default")]
DEPTHS, ROUNDS = size((4, 8, 16), (1, 2)), size(3, 1)
_OURS = "fastgen.nn.flow.invertible_checkpoint"
_ROUNDING = 1e-3  # of a gradient through 16 steps and back in single precision


def stack(depth: int) -> FlowSequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        net = Network(CHANNELS // 2, CHANNELS)
        nn.init.normal_(net.layers[-1].weight, std=0.01)
        layers += [InvertibleConv1x1(CHANNELS), AffineCoupling(net, parameterisation="sigmoid", interleaved=True)]
    return FlowSequential(*layers)


def checkpointed(flow: FlowSequential) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Keeps the input of every layer, and runs the layer again in the backward pass."""

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        total: Tensor | float = 0.0
        for layer in flow.layers:
            x, log_det = checkpoint(layer, x, use_reentrant=False)
            total = total + log_det
        return x, total

    return forward


def step(forward: Callable[[Tensor], tuple[Tensor, Tensor]], flow: nn.Module, x: Tensor) -> Callable[[], list[Tensor]]:
    parameters = list(flow.parameters())

    def call() -> list[Tensor]:
        z, log_det = forward(x)
        loss = (0.5 * z.square().flatten(1).sum(1) - log_det).mean()
        return [loss.detach(), *torch.autograd.grad(loss, parameters)]

    return call


def worst_error(found: list[Tensor], exact: list[Tensor]) -> float:
    """Returns the worst error relative to a tensor's largest element and to 1, with ReLUs flipped by rounding."""
    return max(((a - b).abs().max() / (1 + b.abs().max())).item() for a, b in zip(found, exact, strict=True))


@pytest.mark.benchmark(group="invertible_checkpoint")
def bench_invertible_checkpoint(benchmark):
    torch.manual_seed(0)
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    x, peaks = torch.randn(SHAPE), {}
    for depth in DEPTHS:
        flow = stack(depth)
        ways = {
            "plain": flow,
            "torch.utils.checkpoint": checkpointed(flow),
            _OURS: invertible_checkpoint(flow),
        }
        exact = step(flow.double(), flow, x.double())()
        flow.float()
        calls = {name: step(forward, flow, x) for name, forward in ways.items()}
        usual = worst_error(calls["plain"](), exact)
        for call in calls.values():
            assert worst_error(call(), exact) <= 2 * usual + _ROUNDING
        peaks[depth] = {name: peak_mebibytes(call) for name, call in calls.items()}
    providers = [
        Provider(name, call, 1, threads, note=", ".join(f"{peaks[depth][name]:.1f}" for depth in DEPTHS) + " MiB")
        for name, call in calls.items()
    ]
    interleave(benchmark, providers, ROUNDS)
    depths = ", ".join(map(str, DEPTHS))
    title = f"Training step of {DEPTHS[-1]} steps of Glow, {' x '.join(map(str, SHAPE))}; peak memory at {depths} steps"
    part = Part("invertible_checkpoint", title, "call")
    part.add(providers, compared_with=providers[0])
    if not QUICK:
        first, last = (peaks[depth][_OURS] for depth in (DEPTHS[0], DEPTHS[-1]))
        part.bars = [Bar(f"memory at {DEPTHS[-1]} steps over that at {DEPTHS[0]}", 1.2, last / first, at_most=True)]
    publish(part, benchmark)
