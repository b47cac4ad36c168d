"""A MADE of 784 binary features: samples a second, against units computed once in eager PyTorch and a textbook loop."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from fastgen.generate import heads
from fastgen.nn import MaskedMLP

from ..suite.interleave import Provider, interleave
from ..suite.machine import keep_freed_memory, thread_counts
from ..suite.quick import QUICK, size
from ..suite.report import Bar, Part, publish
from .checks import check_log_prob, check_parameters, parameters_of
from .providers import images, say

pytestmark = pytest.mark.needs_extension
FEATURES = size(784, 20)
HIDDEN = size((500, 500), (16, 16))
ROUNDS = size(7, 1)


class Network(nn.Module):
    """Features ``[N, D]`` to logits ``[N, D]``."""

    def __init__(self) -> None:
        super().__init__()
        self.masked = MaskedMLP(FEATURES, 1, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.masked(x)[..., 0]


@functools.cache
def sampler() -> fastgen.Sampler:
    torch.manual_seed(0)
    return fastgen.Sampler(Network().eval(), (FEATURES,), heads.Bernoulli("float"), order="features")


class UnitsOnce:
    """Draws features computing every hidden unit once: units sorted by degree, those of one degree at a time."""

    def __init__(self, network: Network, batch: int) -> None:
        masked, self.batch = network.masked, batch
        degrees = [degrees.cpu() for degrees in masked.degrees]
        orders = [None, *[units.argsort(stable=True) for units in degrees[1:]], None]
        self.maps = []
        for number, layer in enumerate(masked.layers):
            weight, bias = (layer.weight * layer.mask).detach(), layer.bias.detach()
            if orders[number + 1] is not None:
                weight, bias = weight[orders[number + 1]], bias[orders[number + 1]]
            if orders[number] is not None:
                weight = weight[:, orders[number]]
            self.maps.append((weight.contiguous(), bias))
        # how many units of each hidden layer are of degree d at most
        steps = torch.arange(FEATURES + 1)
        self.ends = [torch.searchsorted(units.sort().values, steps, right=True).tolist() for units in degrees[1:]]

    @torch.no_grad()
    def generate(self, uniforms: Tensor, levels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns drawn features and logits ``[N, D]``; ``levels`` are fed in their place where they are given."""
        x, logits = torch.zeros(self.batch, FEATURES), torch.zeros(self.batch, FEATURES)
        hidden = [torch.zeros(self.batch, len(bias)) for _, bias in self.maps[:-1]]
        for d in range(FEATURES):
            below = x[:, :d]
            for (weight, bias), units, ends in zip(self.maps[:-1], hidden, self.ends, strict=True):
                first, last = ends[d - 1] if d else 0, ends[d]
                if last > first:
                    units[:, first:last] = torch.relu(
                        F.linear(below, weight[first:last, : below.shape[1]], bias[first:last])
                    )
                below = units[:, :last]
            weight, bias = self.maps[-1]
            logits[:, d] = below @ weight[d, : below.shape[1]] + bias[d]
            x[:, d] = torch.sigmoid(logits[:, d]) > uniforms[d] if levels is None else levels[:, d]
        return x, logits


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.benchmark(group="MADE")
def bench_made(benchmark, batch):
    torch.set_num_threads(thread_counts()[-1])
    keep_freed_memory()
    title = f"MADE of {FEATURES} features, hidden {HIDDEN}, batch {batch}"
    say(f"{title}: checking")
    ours, network = sampler(), sampler().module
    levels, log_prob = ours.sample(batch, seed=0, return_log_prob=True)
    check_log_prob(network, ours.head, levels, log_prob)
    exact, plain = (found[..., 0, 0] for found in parameters_of(network, ours.head, levels))
    once = UnitsOnce(network, batch)
    check_parameters(once.generate(torch.zeros(FEATURES, batch), levels.float())[1], exact, plain)

    @torch.no_grad()
    def textbook() -> None:
        torch.bernoulli(torch.sigmoid(network(levels.float())[:, 0]))

    providers = [images(ours, batch, threads) for threads in thread_counts()]
    uniforms = torch.rand(FEATURES, batch)
    cached = [
        Provider("every unit once, eager", functools.partial(once.generate, uniforms), batch, threads)
        for threads in thread_counts()
    ]
    note = f"1 of {FEATURES} features timed, multiplied"
    loop = Provider("textbook loop", textbook, batch / FEATURES, thread_counts()[-1], note)
    say(f"{title}: timing {ROUNDS} rounds")
    interleave(benchmark, [*providers, *cached, loop], ROUNDS)
    part = Part(f"made-{batch}", title, "sample")
    part.add([loop, *cached, *providers], compared_with=loop)
    if not QUICK:
        fastest = min(providers, key=lambda p: p.seconds)
        other = min(cached, key=lambda p: p.seconds)
        part.bars = [
            Bar("over the textbook loop", 100, fastest.speedup_over(loop)),
            Bar("over every unit once", 1, fastest.speedup_over(other)),
        ]
    publish(part, benchmark)
