"""Gated PixelCNN, 5 layers of 64 channels: images per second, against the same cache written in eager PyTorch."""

from __future__ import annotations

import functools

import pytest
import torch

import fastgen
from fastgen.generate import noise

from ..suite.interleave import Provider, interleave
from ..suite.machine import keep_freed_memory, thread_counts
from ..suite.quick import QUICK, size
from ..suite.report import Bar, Part, publish
from .checks import check_draws, check_log_prob, check_parameters, parameters_of
from .gated_cache import CachedGatedPixelCNN
from .providers import images, say
from .textbook import ImageLoop

pytestmark = pytest.mark.needs_extension
SEED = 0
EVENT = size((3, 32, 32), (3, 6, 6))
CHANNELS = size(64, 9)
ROUNDS = size(7, 1)
SITES = EVENT[0] * EVENT[1] * EVENT[2]


@functools.cache
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    model = fastgen.create_model(
        "gated_pixelcnn", event_shape=EVENT, layers=size(5, 2), channels=CHANNELS, kernel_size=3, head_channels=CHANNELS
    )
    return model.eval()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.benchmark(group="Gated PixelCNN")
def bench_gated_pixelcnn(benchmark, batch):
    torch.set_num_threads(thread_counts()[-1])
    keep_freed_memory()
    title = f"Gated PixelCNN {EVENT[1]} x {EVENT[2]} x 3, 5 layers of 64 channels, batch {batch}"
    say(f"{title}: checking")
    model = network()
    sampler = model.sampler()
    levels, log_prob = sampler.sample(batch, SEED, return_log_prob=True)
    check_log_prob(model, model.head, levels, log_prob)
    exact, plain = parameters_of(model, model.head, levels)  # [N, P, C, L]
    samples, positions = torch.arange(batch), torch.arange(SITES // 3)
    uniforms = torch.stack([noise.uniform(SEED, samples, positions, c, 0) for c in range(3)], -1)
    drawn = levels.flatten(2).transpose(1, 2)
    check_draws(drawn, exact, uniforms, (plain - exact).abs().max().item())

    cache = CachedGatedPixelCNN(model, batch)
    of_cache = uniforms.permute(2, 1, 0).reshape(*EVENT, batch).float()
    chosen, logits = cache.generate(of_cache, levels)
    error = check_parameters(logits.flatten(2, 3).transpose(1, 2), exact, plain)
    check_draws(chosen.flatten(2).transpose(1, 2), exact, uniforms, error)
    loop = ImageLoop(model, model.head, EVENT, batch, subpixels=True, seed=SEED)
    loop.advance(6)
    assert torch.equal(loop.drawn()[..., :2], levels.flatten(2)[..., :2])

    ours = [images(sampler, batch, threads) for threads in thread_counts()]
    cached = [
        Provider("row and pixel cache, eager", functools.partial(cache.generate, of_cache), batch, threads)
        for threads in thread_counts()
    ]
    note = f"3 of {SITES} sub-pixels timed, multiplied"
    textbook = Provider(
        "textbook loop, eager", functools.partial(loop.advance, 3), batch * 3 / SITES, thread_counts()[-1], note
    )
    say(f"{title}: timing {ROUNDS} rounds")
    interleave(benchmark, [*ours, *cached, textbook], ROUNDS)

    part = Part(f"gated_pixelcnn-{batch}", title, "image")
    part.add([textbook, *cached, *ours], compared_with=textbook)
    if not QUICK:
        fastest = min(cached, key=lambda p: p.seconds)
        best = max(p.speedup_over(fastest) for p in ours)
        part.bars = [Bar("the faster thread count, over the faster eager cache", 10, best)]
    publish(part, benchmark)
