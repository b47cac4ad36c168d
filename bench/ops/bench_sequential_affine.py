"""Sampling from a masked autoregressive flow of 5 steps and 64 features: unit by unit against a pass for each feature.

The widths are those people use: two hidden layers of 512 (MAF's larger networks), and of 128 (nflows' and zuko's
examples have 64 to 128).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastgen import _C
from fastgen.nn import MaskedAffineAutoregressive

from ..interleave import Provider, interleave
from ..machine import keep_freed_memory, thread_counts
from ..quick import QUICK, size
from ..report import Bar, Part, publish

pytestmark = pytest.mark.needs_extension
LAYERS, FEATURES = size(5, 2), size(64, 5)
WIDTHS, BATCHES = size((512, 128), (9, 7)), size((64, 4096), (3, 33))


def full_passes(layers: nn.ModuleList, u: Tensor) -> Tensor:
    """The textbook: as many passes of the whole network as there are features, each of which makes one right."""
    for layer in reversed(layers):
        x = torch.zeros_like(u)
        for _ in range(FEATURES):
            mu, alpha = layer.made(x)
            x = u * alpha.exp() + mu
        u = x
    return u


def dense_passes(layers: nn.ModuleList) -> nn.ModuleList:
    """The same network with its masks multiplied in once, which the textbook could do."""
    return nn.ModuleList(_Dense(layer) for layer in layers)


class _Dense(nn.Module):
    def __init__(self, layer: MaskedAffineAutoregressive) -> None:
        super().__init__()
        maps = []
        for masked in layer.made.layers:
            dense = nn.Linear(masked.in_features, masked.out_features)
            dense.load_state_dict({"weight": masked.weight * masked.mask, "bias": masked.bias})
            maps += [dense, nn.ReLU()]
        self.net = nn.Sequential(*maps[:-1])

    def made(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.net(x).chunk(2, -1)


def unit_by_unit(layers: nn.ModuleList, u: Tensor) -> Tensor:
    for layer in reversed(layers):
        u, _ = layer.inverse(u)
    return u


@torch.no_grad()
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.benchmark(group="sequential_affine")
def bench_sequential_affine(benchmark, width, batch):
    torch.manual_seed(0)
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    orders = ("natural", "reversed")
    layers = nn.ModuleList(
        MaskedAffineAutoregressive(FEATURES, (width, width), order=orders[i % 2]) for i in range(LAYERS)
    )
    dense, u = dense_passes(layers), torch.randn(batch, FEATURES)
    found = unit_by_unit(layers, u)
    x = found
    for layer in layers:
        x, _ = layer(x)
    torch.testing.assert_close(x, u, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(full_passes(layers, u), found, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(full_passes(dense, u), found, rtol=1e-3, atol=1e-3)
    least = 2 * batch * sum(int(masked.mask.sum()) for layer in layers for masked in layer.made.layers)
    providers = [
        Provider("a pass a feature, eager", lambda: full_passes(layers, u), batch, threads),
        Provider("a pass a feature, masks multiplied in before", lambda: full_passes(dense, u), batch, threads),
        Provider(
            "fastgen",
            lambda: unit_by_unit(layers, u),
            batch,
            threads,
            floor=lambda: least / batch / _C.fma_peak(threads) / 1e9,
        ),
    ]
    interleave(benchmark, providers, size(3 if batch > 1000 else 9, 1))
    part = Part(
        f"sequential_affine-{width}-{batch}",
        f"MAF of {LAYERS} steps, {FEATURES} features, {width} x 2 hidden units, inverse of {batch:,} samples",
        "sample",
    )
    part.add(providers, compared_with=providers[0])
    if not QUICK:
        part.bars = [Bar("over a pass a feature, eager", 20, providers[2].speedup_over(providers[0]))]
    publish(part, benchmark)
