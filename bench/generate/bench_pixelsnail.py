"""A PixelSNAIL of 28 x 28 pixels: images a second, against its cache in eager PyTorch and a textbook loop."""

from __future__ import annotations

import functools

import pytest
import torch

import fastgen

from ..suite.interleave import Provider, interleave
from ..suite.machine import keep_freed_memory, thread_counts
from ..suite.quick import QUICK, size
from ..suite.report import Bar, Part, publish
from .checks import check_log_prob, check_parameters, parameters_of
from .pixelsnail_cache import CachedPixelSNAIL
from .providers import images, say
from .textbook import ImageLoop

pytestmark = pytest.mark.needs_extension
EVENT = size((1, 28, 28), (1, 5, 5))
FILTERS = size(64, 8)
PIXELS = EVENT[1] * EVENT[2]
TIMED = size(56, 4)
ROUNDS = size(5, 1)


@functools.cache
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = size({"blocks": 3, "convolutions": 2}, {"blocks": 1, "convolutions": 1})
    model = fastgen.create_model("pixelsnail", event_shape=EVENT, filters=FILTERS, **sizes)
    return model.eval()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.benchmark(group="PixelSNAIL")
def bench_pixelsnail(benchmark, batch):
    torch.set_num_threads(thread_counts()[-1])
    keep_freed_memory()
    title = f"PixelSNAIL {EVENT[1]} x {EVENT[2]}, {FILTERS} filters, batch {batch}"
    say(f"{title}: checking")
    model = network()
    sampler = model.sampler()
    levels, log_prob = sampler.sample(batch, seed=0, return_log_prob=True)
    check_log_prob(model, model.head, levels, log_prob)
    exact, plain = parameters_of(model, model.head, levels)  # [N, P, 1, n]
    cache = CachedPixelSNAIL(model, batch)
    check_parameters(cache.advance(PIXELS, levels).transpose(1, 2), exact[:, :, 0], plain[:, :, 0])
    loop = ImageLoop(model, model.head, EVENT, batch, subpixels=False, seed=0)
    loop.advance(3)
    assert torch.equal(loop.drawn()[..., :3], levels.flatten(2)[..., :3])

    ours = [images(sampler, batch, threads) for threads in thread_counts()]
    cached = [
        Provider(
            "every activation kept, eager", functools.partial(cache.advance, TIMED), batch * TIMED / PIXELS, threads,
            f"{TIMED} of {PIXELS} pixels timed, multiplied",
        )
        for threads in thread_counts()
    ]  # fmt: skip
    note = f"1 of {PIXELS} pixels timed, multiplied"
    textbook = Provider("textbook loop", functools.partial(loop.advance, 1), batch / PIXELS, thread_counts()[-1], note)
    say(f"{title}: timing {ROUNDS} rounds")
    interleave(benchmark, [*ours, *cached, textbook], ROUNDS)
    part = Part(f"pixelsnail-{batch}", title, "image")
    part.add([textbook, *cached, *ours], compared_with=textbook)
    if not QUICK:
        fastest = min(ours, key=lambda p: p.seconds)
        other = min(cached, key=lambda p: p.seconds)
        part.bars = [
            Bar("over the textbook loop", 100, fastest.speedup_over(textbook)),
            Bar("over the eager cache", 1, fastest.speedup_over(other)),
        ]
    publish(part, benchmark)
