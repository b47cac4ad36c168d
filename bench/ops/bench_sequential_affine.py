"""Sampling from a masked autoregressive flow of 5 steps and 64 features: unit by unit against a pass for each feature.

The widths are those people use: two hidden layers of 512 (MAF's larger networks), and of 128 (nflows' and zuko's
examples have 64 to 128). The libraries' networks are of the same size, with weights of their own.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from fastgen import _C
from fastgen.nn import MaskedAffineAutoregressive

from ..suite.interleave import Provider, interleave
from ..suite.machine import keep_freed_memory, thread_counts
from ..suite.quick import QUICK, size
from ..suite.report import Bar, Part, publish

pytestmark = pytest.mark.needs_extension
LAYERS, FEATURES = size(5, 2), size(64, 5)
WIDTHS, BATCHES = size((512, 128), (9, 7)), size((64, 4096), (3, 33))


def full_passes(mades: Sequence[Callable], u: Tensor) -> Tensor:
    """The textbook inverse: one pass of the whole network for each feature."""
    for made in reversed(mades):
        x = torch.zeros_like(u)
        for _ in range(FEATURES):
            mu, alpha = made(x)
            x = u * alpha.exp() + mu
        u = x
    return u


class Dense(nn.Module):
    """The same network with its masks multiplied in once."""

    def __init__(self, layer: MaskedAffineAutoregressive) -> None:
        super().__init__()
        maps = []
        for masked in layer.made.layers:
            dense = nn.Linear(masked.in_features, masked.out_features)
            dense.load_state_dict({"weight": masked.weight * masked.mask, "bias": masked.bias})
            maps += [dense, nn.ReLU()]
        self.net = nn.Sequential(*maps[:-1])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.net(x).chunk(2, -1)


def unit_by_unit(layers: Sequence[MaskedAffineAutoregressive], u: Tensor) -> Tensor:
    for layer in reversed(layers):
        u, _ = layer.inverse(u)
    return u


def nflows_steps(width: int) -> tuple[Callable, Callable]:
    """Returns nflows' maps from noise to data, and back."""
    from nflows.transforms import CompositeTransform, MaskedAffineAutoregressiveTransform

    flow = CompositeTransform(
        [
            MaskedAffineAutoregressiveTransform(FEATURES, width, num_blocks=1, use_residual_blocks=False)
            for _ in range(LAYERS)
        ]
    )
    return lambda u: flow.inverse(u)[0], lambda x: flow(x)[0]


def zuko_steps(width: int) -> tuple[Callable, Callable]:
    from zuko.flows import MaskedAutoregressiveTransform
    from zuko.transforms import ComposedTransform

    flow = ComposedTransform(
        *[MaskedAutoregressiveTransform(FEATURES, hidden_features=(width, width))() for _ in range(LAYERS)]
    )
    return flow.inv, flow


PEERS = {"nflows": nflows_steps, "zuko": zuko_steps}


@torch.no_grad()
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.benchmark(group="sequential_affine")
def bench_sequential_affine(benchmark, width, batch):
    torch.manual_seed(0)
    torch._dynamo.reset()
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    orders = ("natural", "reversed")
    layers = nn.ModuleList(
        MaskedAffineAutoregressive(FEATURES, (width, width), order=orders[i % 2]) for i in range(LAYERS)
    )
    mades, dense, u = [layer.made for layer in layers], [Dense(layer) for layer in layers], torch.randn(batch, FEATURES)
    ways = {
        "a pass a feature, eager": lambda u: full_passes(mades, u),
        "a pass a feature, masks multiplied in before": lambda u: full_passes(dense, u),
    }
    if not QUICK:
        compiled = [torch.compile(made, fullgraph=True, dynamic=False) for made in dense]
        ways["a compiled pass a feature, masks multiplied in before"] = lambda u: full_passes(compiled, u)
    ways["fastgen"] = lambda u: unit_by_unit(layers, u)
    found = ways["fastgen"](u)
    x = found
    for layer in layers:
        x, _ = layer(x)
    torch.testing.assert_close(x, u, rtol=1e-3, atol=1e-3)
    for way in ways.values():
        torch.testing.assert_close(way(u), found, rtol=1e-3, atol=1e-3)
    for name, steps in PEERS.items():
        if importlib.util.find_spec(name):
            to_data, to_noise = steps(width)
            torch.testing.assert_close(to_noise(to_data(u)), u, rtol=1e-3, atol=1e-3)
            ways[name] = to_data
    least = 2 * batch * sum(int(masked.mask.sum()) for layer in layers for masked in layer.made.layers)

    def floor() -> float:
        return least / batch / _C.fma_peak(threads) / 1e9

    providers = [
        Provider(name, lambda way=way: way(u), batch, threads, floor=floor if name == "fastgen" else None)
        for name, way in ways.items()
    ]
    interleave(benchmark, providers, size(3 if batch > 1000 else 9, 1))
    part = Part(
        f"sequential_affine-{width}-{batch}",
        f"MAF of {LAYERS} steps, {FEATURES} features, {width} x 2 hidden units, inverse of {batch:,} samples",
        "sample",
    )
    part.add(providers, compared_with=providers[0])
    if not QUICK:
        ours = next(p for p in providers if p.name == "fastgen")
        part.bars = [Bar("over a pass a feature, eager", 20, ours.speedup_over(providers[0]))]
    publish(part, benchmark)
