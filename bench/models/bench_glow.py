"""One step of Glow on 32 images of 12 x 16 x 16: act norm, 1x1 convolution, affine coupling with 128 hidden channels.

The libraries' steps are of the same parts and sizes, in the order that each has, with weights of their own.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fastgen import accelerated
from fastgen.nn import AffineCoupling, FlowSequential, InvertibleConv1x1

from ..suite.interleave import Provider, interleave
from ..suite.machine import keep_freed_memory, thread_counts
from ..suite.quick import QUICK, size
from ..suite.report import Bar, Part, publish
from .contest import ROUNDS

pytestmark = [pytest.mark.needs_extension, pytest.mark.filterwarnings("default")]
SHAPE, HIDDEN = size((32, 12, 16, 16), (2, 4, 4, 4)), size(128, 8)
CHANNELS = SHAPE[1]
WAYS = ("forward", "inverse", "training step")


class Network(nn.Module):
    """The conditioner network, the same for every library but normflows, which has its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, HIDDEN, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(HIDDEN, HIDDEN, 1),
            nn.ReLU(),
            nn.Conv2d(HIDDEN, outputs, 3, padding=1),
        )

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        return self.layers(x)


@dataclass
class Step:
    """Maps from data to noise, and back; each returns the tensor and the log-determinant."""

    name: str
    module: nn.Module
    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    inverse: Callable[[Tensor], tuple[Tensor, Tensor]]


def fastgen() -> Step:
    half = CHANNELS // 2
    coupling = AffineCoupling(Network(half, 2 * half), parameterisation="sigmoid", interleaved=True)
    step = FlowSequential(InvertibleConv1x1(CHANNELS, act_norm=True), coupling)
    return Step("fastgen", step, step, step.inverse)


def nflows() -> Step:
    from nflows.transforms import ActNorm, AffineCouplingTransform, CompositeTransform, OneByOneConvolution

    mask = (torch.arange(CHANNELS) >= CHANNELS // 2).int()
    step = CompositeTransform(
        [ActNorm(CHANNELS), OneByOneConvolution(CHANNELS), AffineCouplingTransform(mask, Network)]
    )
    return Step("nflows", step, step, step.inverse)


def normflows() -> Step:
    from normflows.flows import GlowBlock

    step = GlowBlock(CHANNELS, HIDDEN)
    return Step("normflows", step, step.inverse, step)


def freia() -> Step:
    from FrEIA.modules import AllInOneBlock

    step = AllInOneBlock([SHAPE[1:]], subnet_constructor=Network, learned_householder_permutation=0)

    def back(z: Tensor) -> tuple[Tensor, Tensor]:
        (x,), log_det = step([z], rev=True)
        return x, log_det

    def to(x: Tensor) -> tuple[Tensor, Tensor]:
        (z,), log_det = step([x])
        return z, log_det

    return Step("FrEIA", step, to, back)


PEERS = {"nflows": nflows, "normflows": normflows, "FrEIA": freia}


def job(step: Step, what: str, x: Tensor) -> Callable[[], object]:
    if what == "training step":
        optimizer = torch.optim.Adam(step.module.parameters(), 1e-5, fused=True)

        def train() -> None:
            optimizer.zero_grad()
            z, log_det = step.forward(x)
            (0.5 * z.square().flatten(1).sum(1) - log_det).mean().backward()
            optimizer.step()

        return train

    @torch.no_grad()
    def call() -> object:
        return step.forward(x) if what == "forward" else step.inverse(x)

    return call


@pytest.mark.parametrize("what", WAYS)
@pytest.mark.benchmark(group="glow")
def bench_glow(benchmark, what):
    torch.manual_seed(0)
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    x = torch.randn(SHAPE)
    peers = [make() for name, make in PEERS.items() if importlib.util.find_spec(name)]
    if not peers:
        pytest.skip("none of nflows, normflows and FrEIA is installed")
    ours = fastgen()
    with torch.no_grad():
        for step in (ours, *peers):
            step.forward(x)  # act norm takes its parameters from it
            step.module.eval()
            back, _ = step.inverse(step.forward(x)[0])
            torch.testing.assert_close(back, x, rtol=1e-3, atol=1e-3)
        for step in peers:
            with accelerated(step.name):
                fast = step.forward(x)
            torch.testing.assert_close(fast, step.forward(x), rtol=1e-3, atol=1e-3)
    providers = {step.name: Provider(step.name, job(step, what, x), 1, threads) for step in peers}
    fast = {
        step.name: Provider(
            f"{step.name}, accelerated", job(step, what, x), 1, threads, within=partial(accelerated, step.name)
        )
        for step in peers
    }
    own = Provider("fastgen", job(ours, what, x), 1, threads)
    order = [*providers.values(), *fast.values(), own]
    interleave(benchmark, order, ROUNDS)
    part = Part(f"glow-{what.replace(' ', '-')}", f"A step of Glow, {' x '.join(map(str, SHAPE))}, {what}", "call")
    part.add(order, compared_with=order[0])
    if not QUICK:
        fastest = min(providers.values(), key=lambda p: p.seconds)
        part.bars = [Bar(f"over the fastest library ({fastest.name})", 1, own.speedup_over(fastest))]
        part.bars += [
            Bar(f"{name}, accelerated over itself", 2, fast[name].speedup_over(p)) for name, p in providers.items()
        ]
    publish(part, benchmark)
