"""Compiling a sampler: export, analysis, lowering and packing; its memory; saving and loading."""

from __future__ import annotations

import pytest

from ..suite.quick import QUICK, size
from ..suite.report import Bar, Part, publish
from .compile_cost import measure
from .providers import say

pytestmark = pytest.mark.needs_extension
TINY = {"event_shape": (3, 8, 8), "filters": 4, "blocks": 1, "mixtures": 2}
MODELS = {
    "WaveNet, 30 layers": ("wavenet", {}),
    "PixelCNN++ 32 x 32 x 3, 40 filters, 2 blocks": ("pixelcnn_pp", {"filters": 40, "blocks": 2}),
    "PixelCNN++ 32 x 32 x 3, 80 filters, 5 blocks": ("pixelcnn_pp", {"filters": 80, "blocks": 5}),
    "Gated PixelCNN 32 x 32 x 3, 5 layers of 64 channels": (
        "gated_pixelcnn",
        {"layers": 5, "channels": 64, "kernel_size": 3, "head_channels": 64},
    ),
}


@pytest.mark.parametrize("title", size(list(MODELS), ["PixelCNN++, tiny"]))
@pytest.mark.benchmark(group="compiling a sampler")
def bench_compile(benchmark, title):
    say(f"{title}: compiling a sampler")
    name, config = MODELS.get(title, ("pixelcnn_pp", TINY))
    cost = benchmark.pedantic(measure, args=(name, config), rounds=1, iterations=1)
    part = Part(f"compile-{title}", f"Compiling a sampler: {title}", "sampler", facts=cost)
    for kind in ("shared memory", "memory a sample"):
        unit = "MiB" if kind == "shared memory" else "KiB"
        explained, measured = (cost[f"{kind} {how}, {unit}"] for how in ("explained", "measured"))
        assert abs(explained - measured) <= 0.1 * measured, f"{kind}: {explained} explained, {measured} measured"
    if not QUICK:
        part.bars = [
            Bar("compile", 20, cost["compile, s"], "s", at_most=True),
            Bar("peak memory", 1024, cost["peak memory of compiling, MiB"], "MiB", at_most=True),
            Bar("load", 1, cost["load, s"], "s", at_most=True),
        ]
    publish(part, benchmark)
