"""WaveNet, 30 layers of 64 channels: samples a second, against the textbook loop and ring-buffer steps in PyTorch."""

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
from .checks import check_draws, check_log_prob, check_parameters, check_rounded_weights, parameters_of
from .floors import share_read
from .providers import MODES, compiled, say, stream
from .textbook import WindowLoop
from .wavenet_step import RingStep

pytestmark = pytest.mark.needs_extension
SEED = 3
WEIGHTS = ("float32", "bfloat16", "int8")
ROUNDS = size(15, 2)
CHECKED = size(1200, 40)  # past the longest dilation, so that every ring has gone round
STEPS = size({1: 800, 16: 160}, {1: 20, 16: 8})
RING_STEPS = size(150, 5)


@functools.cache
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    widths = {"residual_channels": 8, "gate_channels": 16, "skip_channels": 8, "head_channels": 8}
    return fastgen.create_model("wavenet", **size({}, {"cycles": 2, "layers_per_cycle": 3, **widths})).eval()


@functools.cache
def sampler(weights: str) -> fastgen.Sampler:
    return network().sampler(weights=weights)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.benchmark(group="WaveNet")
def bench_wavenet(benchmark, batch):
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    torch._dynamo.reset()
    say(f"WaveNet, batch {batch}: checking")
    model, window = network(), network().config.receptive_field
    levels, log_prob = first_levels(batch)
    check_log_prob(model, model.head, levels[:, :CHECKED], log_prob)
    exact, plain = parameters_of(model, model.head, levels[:, :CHECKED])
    exact, plain = exact[:, :, 0], plain[:, :, 0]
    uniforms = noise.uniform(SEED, torch.arange(batch), torch.arange(CHECKED), 0, 0)
    check_draws(levels[:, :CHECKED], exact, uniforms, (plain - exact).abs().max().item())

    textbook = WindowLoop(model, model.head, levels[:, : window + 1], window, SEED)
    textbook.advance(2)
    assert torch.equal(textbook.drawn(), levels[:, window + 1 : window + 3])

    ring, late = (
        RingStep(model, batch),
        noise.uniform(SEED, torch.arange(batch), torch.arange(RING_STEPS), 0, 0).T.float(),
    )
    steps = {"eager": ring.step}
    with torch.no_grad():
        for mode in size(MODES, MODES[: batch == 1]):
            steps[f"compiled {mode}"] = compiled(ring.step, mode, ring.level, ring.slots[0], late[0])
    for step in steps.values():
        ring.reset()
        drawn, logits = ring.advance(uniforms.T.float(), step, levels[:, :CHECKED])
        check_draws(drawn, exact, uniforms, check_parameters(logits, exact, plain))
    for weights in ("bfloat16", "int8"):
        check_rounded_weights(sampler(weights), steps=size(24, 6))

    ours = [stream(sampler(weights), batch, n, STEPS[batch]) for weights in WEIGHTS for n in thread_counts()]
    rings = [
        Provider(f"ring buffers, {name}", functools.partial(ring.advance, late, step), batch * RING_STEPS, threads)
        for name, step in steps.items()
    ]
    loop = Provider("textbook loop", functools.partial(textbook.advance, 1), batch, threads, f"a window of {window}")
    say(f"WaveNet, batch {batch}: timing {ROUNDS} rounds")
    interleave(benchmark, [*ours, *rings, loop], ROUNDS)

    part = Part(f"wavenet-{batch}", f"WaveNet, 30 layers, batch {batch}", "sample")
    part.add([loop, *rings, *ours], compared_with=loop)
    best, single = min(rings[1:] or rings, key=lambda p: p.seconds), ours[0]
    part.facts["best compiled step"] = best.name
    part.facts["share of the weights that a step reads"] = share_read(sampler("float32").program, batch)
    for provider in ours:
        part.facts[f"{provider.name}, {provider.machine_threads} thr., over the best compiled step"] = (
            provider.speedup_over(best)
        )
    part.bars = bars(batch, ours, single, best, loop)
    publish(part, benchmark)


@functools.cache
def first_levels(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the start of the sampler's sequences, and the log-probability of the ``CHECKED`` first."""
    state = sampler("float32").start(batch, SEED, log_prob=True)
    sampler("float32").advance(state, CHECKED)
    log_prob = state.run.log_prob.clone()
    sampler("float32").advance(state, max(network().config.receptive_field + 4 - CHECKED, 0))
    return state.levels, log_prob


def bars(batch: int, ours: list[Provider], single: Provider, best: Provider, loop: Provider) -> list[Bar]:
    if QUICK:
        return []
    if batch > 1:
        best_of_ours = max(p.speedup_over(best) for p in ours if p.name == "fastgen")
        return [Bar("float32, the faster thread count, over the best compiled step", 2.5, best_of_ours)]
    rounded = next(p for p in ours if p.name == "fastgen bfloat16" and p.machine_threads == 1)
    of_all = single.percent_of_floor / share_read(sampler("float32").program, batch)
    found = [
        Bar("float32, 1 thread, of the measured read bandwidth", 85, single.percent_of_floor, "%"),
        Bar("float32, 1 thread, of a step that reads every weight at the measured bandwidth", 85, of_all, "%"),
        Bar("float32, 1 thread", 16000, 1 / single.seconds, "samples/s"),
        Bar("float32, 1 thread, over the best compiled step", 7, single.speedup_over(best)),
        Bar("float32, 1 thread, over the textbook loop", 800, single.speedup_over(loop)),
        Bar("bfloat16, 1 thread", 28000, 1 / rounded.seconds, "samples/s"),
    ]
    several = [p for p in ours if p.name == "fastgen" and p.machine_threads == 2]
    return found + [Bar("float32, 2 threads over 1", 1.4, p.speedup_over(single)) for p in several]
