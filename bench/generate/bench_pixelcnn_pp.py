"""PixelCNN++ on 32 x 32 x 3: images per second, against the textbook loop, eager and compiled."""

from __future__ import annotations

import functools

import pytest
import torch

import fastgen

from ..suite.interleave import Provider, interleave
from ..suite.machine import keep_freed_memory, thread_counts
from ..suite.quick import QUICK, size
from ..suite.report import Bar, Part, publish
from .checks import check_log_prob
from .providers import MODES, compiled, images, say
from .textbook import ImageLoop

pytestmark = pytest.mark.needs_extension
SEED = 0
EVENT = size((3, 32, 32), (3, 8, 8))
POSITIONS = EVENT[1] * EVENT[2]
ROUNDS = size({1: 9, 16: 5}, {1: 1, 16: 1})
COMPILED = size({1: MODES, 16: MODES[:1]}, {1: (), 16: ()})
WANTED = {(40, 1): 400, (40, 16): 700, (80, 1): 250, (80, 16): 500}


@functools.cache
def network(filters: int, blocks: int) -> torch.nn.Module:
    torch.manual_seed(0)
    shape = size({"filters": filters, "blocks": blocks}, {"filters": 4, "blocks": 1, "mixtures": 2})
    return fastgen.create_model("pixelcnn_pp", event_shape=EVENT, weight_norm=False, **shape).eval()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize(("filters", "blocks"), size([(40, 2), (80, 5)], [(40, 2)]))
@pytest.mark.benchmark(group="PixelCNN++")
def bench_pixelcnn_pp(benchmark, filters, blocks, batch):
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    torch._dynamo.reset()
    title = f"PixelCNN++ {EVENT[1]} x {EVENT[2]} x 3, {filters} filters, {blocks} blocks, batch {batch}"
    say(f"{title}: checking")
    model = network(filters, blocks)
    sampler = model.sampler()
    levels, log_prob = sampler.sample(batch, SEED, return_log_prob=True)
    check_log_prob(model, model.head, levels[:2], log_prob[:2])
    assert torch.equal(levels[:2], sampler.sample(min(batch, 2), SEED))

    forwards = {"eager": model}
    example = model.head.to_input(levels)
    for mode in COMPILED[batch] if filters == 40 else ():
        with torch.no_grad():
            forwards[f"compiled {mode}"] = compiled(model, mode, example)
    steps = 1 if batch > 1 else 3
    loops = []
    for name, forward in forwards.items():
        loop = ImageLoop(forward, model.head, EVENT, batch, subpixels=False, seed=SEED)
        loop.advance(4)
        assert torch.equal(loop.drawn()[..., :4], levels.flatten(2)[..., :4])
        note = f"{steps} of {POSITIONS} positions timed, multiplied"
        run = functools.partial(loop.advance, steps)
        loops.append(Provider(f"textbook loop, {name}", run, batch * steps / POSITIONS, threads, note))
    ours = [images(sampler, batch, n) for n in thread_counts()]
    say(f"{title}: timing {ROUNDS[batch]} rounds")
    interleave(benchmark, [*ours, *loops], ROUNDS[batch])

    part = Part(f"pixelcnn_pp-{filters}-{blocks}-{batch}", title, "image")
    part.add([*loops, *ours], compared_with=loops[0])
    if not QUICK:
        best = max(p.speedup_over(loops[0]) for p in ours)
        part.bars = [
            Bar("the faster thread count, over the textbook loop in eager PyTorch", WANTED[filters, batch], best)
        ]
        fastest_loop = min(loops, key=lambda p: p.seconds)
        part.facts["over the fastest textbook loop"] = max(p.speedup_over(fastest_loop) for p in ours)
    publish(part, benchmark)
