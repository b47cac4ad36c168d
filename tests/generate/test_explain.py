"""What a sampler tells about itself is what is so."""

from __future__ import annotations

import builtins
import math

import numpy as np
import pytest
import torch
from torch import nn

import fastgen
from fastgen.generate import heads
from fastgen.generate.contexts import context_leaves
from tests.generate.compiled import CASES, FAST, case, sampler
from tests.generate.public_images import MaskedConv
from tests.generate.seeded import built
from tests.generate.teacher import in_double

FIELDS = [
    "masked_stack", "pixel_shuffle", "made", "made_permuted", "video", "wavenet_one_hot", "tokens_last",
    "temporal_conv_net", "causal_unet", "bytenet", "pixelcnn", "pixelcnn_colour", "gated_pixelcnn",
    "gated_pixelcnn_colour", "pixelcnn_pp", "wavenet", "wavenet_mixture",
]  # fmt: skip


def changed_by(name: str, position: tuple[int, ...], channel: int, expected: np.ndarray) -> np.ndarray:
    """The elements ``[C, *grid]`` that change a float64 parameter of the output when they change, one at a time.

    A unit that is off hides what it reads: several events are tried, until all of ``expected`` has shown.
    """
    compiled = sampler(name)
    module = in_double(compiled)
    analysis = compiled.compiled.analysis
    shape, order = analysis.event_shape, analysis.order.steps  # a sequence is analysed at a length of its own
    count = math.prod(shape)
    levels = compiled.head.levels
    flat = int(np.ravel_multi_index(position, shape[1:] if len(shape) > 1 else shape))
    here = [c for c in range(len(order)) if order[c, flat] == order[channel, flat]]
    context = case(name).contexts(1)
    leaves = [t.double() if t.is_floating_point() else t for t in context_leaves(compiled.request.layout, context, 1)]
    changed = np.zeros(count, bool)
    for seed in range(16):
        base = case(name).levels(1, seed)
        base = torch.cat([base] * -(-shape[-1] // base.shape[-1]), -1)[..., : shape[-1]]
        variants = base.flatten(1).repeat(count + 1, 1)
        index = torch.arange(count)
        variants[index, index] = (variants[index, index] + 1 + levels // 3) % levels
        inputs = compiled.head.to_input(variants.reshape(count + 1, *shape))
        inputs = inputs.double() if inputs.is_floating_point() else inputs
        many = [t.expand(count + 1, *t.shape[1:]) for t in leaves]
        with torch.no_grad():
            parameters = compiled.head.arrange(module.request.forward(inputs, many), shape)[:, flat]
        parameters = parameters if len(here) == len(order) else parameters[:, here]
        apart = (parameters[:-1] - parameters[-1:]).abs()  # rows of a product may round differently
        changed |= (apart > 1e-12 * parameters.abs().max()).flatten(1).any(1).numpy()
        if seed > 1 and changed[expected.reshape(-1)].all():
            break
    return changed.reshape(len(order), *(shape[1:] if len(shape) > 1 else shape))


@pytest.mark.parametrize("name", FIELDS)
def test_the_receptive_field_is_what_changes_the_output(name):
    compiled = sampler(name)
    explanation, analysis = compiled.explain(), compiled.compiled.analysis
    order, shape = analysis.order, analysis.event_shape
    grid = shape[1:] if len(shape) > 1 else shape
    middle = tuple(n // 2 for n in grid)
    for position, channel in ((explanation.field.position, 0), (middle, len(order.steps) - 1)):
        field = explanation.receptive_field(position, channel)
        assert np.array_equal(field.seen, changed_by(name, position, channel, field.seen)), position
        step = order.steps[channel].reshape(grid)[position]
        assert np.array_equal(field.earlier, (order.steps < step).reshape(field.earlier.shape))
        assert not (field.seen & ~field.earlier).any()
        assert not (field.blind & (field.seen | ~field.earlier)).any()


def test_the_first_output_depends_on_nothing():
    field = sampler("masked_stack").explain().receptive_field((0, 0))
    assert not field.seen.any()
    assert field.extents == {}


def test_a_stack_of_masked_convolutions_has_its_blind_spot():
    """Two 3 x 3 convolutions: the triangle above and to the right of a pixel is out of sight."""

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = MaskedConv("A", 1, 4, 3, padding=1)
            self.second = MaskedConv("B", 4, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(x)))

    explanation = fastgen.Sampler(
        built(Stack), event_shape=(1, 9, 9), head=heads.Categorical(3, to_input="unit"), machine=FAST
    ).explain()
    field = explanation.receptive_field((6, 4))
    assert field.extents == {"above": 2, "left": 2, "right": 2}
    assert [tuple(i) for i in np.argwhere(field.blind[0])] == [(5, 6)]
    assert "1 earlier elements within its reach are not seen: (7, 6)" in str(explanation)


def test_a_gated_pixelcnn_has_no_blind_spot_and_a_wavenet_the_reach_of_its_dilations():
    assert not sampler("gated_pixelcnn").explain().field.blind.any()
    config = case("wavenet").module.config
    field = sampler("wavenet").explain().field
    assert field.extents == {"steps": config.receptive_field}
    assert not field.blind.any()


@pytest.mark.parametrize("name", ["char_lstm", "cells", "averages", "samplernn", "row_lstm", "wavernn"])
def test_a_recurrence_sees_every_earlier_element(name):
    field = sampler(name).explain().field
    assert (field.seen == field.earlier).all()
    assert not field.blind.any()


# ---- work


@pytest.mark.parametrize("name", CASES)
def test_work_is_less_than_the_textbook_loop_s(name):
    compiled = sampler(name)
    work = compiled.explain().work
    assert work.steps == compiled.steps
    assert work.total == pytest.approx(work.prologue + work.steps * (work.row + work.pixel))
    assert work.textbook == work.steps * work.parallel
    modules = list(compiled.module.modules())
    norms = [m.weight.numel() for m in modules if isinstance(m, nn.LayerNorm | nn.BatchNorm2d)]
    norms += [p.numel() for m in modules if not type(m).__module__.startswith("torch") for p in m._parameters.values()]
    rows = [m.embedding_dim for m in modules if isinstance(m, nn.Embedding)]
    scales = (2 * sum(norms) + sum(rows)) * compiled.steps
    assert 0 < work.total <= work.parallel + scales, "every activation once: at most one forward pass"


def test_work_for_several_steps_at_once_is_part_of_the_step_s():
    explanation = sampler("wavenet_wide").explain()
    work, width, gate, steps = explanation.work, 32, 40, 70
    taps = [steps - back for back in (2, 4, 4, 8, 8, 16)]  # of dilations 2, 4 and 8, inside the sequence
    assert work.ahead * steps == width * gate * sum(taps)
    assert work.ahead < work.pixel
    assert "for several steps at once" in str(explanation)
    assert sampler("wavenet").explain().work.ahead == 0


def test_work_is_counted_by_hand():
    """A 1 x 1 convolution behind a masked one: 12 taps where they lie in the image, then 4 x 3."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = MaskedConv("A", 1, 4, 5, padding=2), nn.Conv2d(4, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(x)))

    head, size = heads.Categorical(3, to_input="unit"), 8
    explanation = fastgen.Sampler(built(Pair), event_shape=(1, size, size), head=head, machine=FAST).explain()
    inside = [sum(0 <= i + d < size for i in range(size)) for d in range(-2, 3)]
    above, left = sum(inside[:2]) * sum(inside), size * sum(inside[:2])
    work = explanation.work
    assert work.row * work.steps == 4 * above
    assert work.pixel * work.steps == 4 * left + size * size * 4 * 3
    assert work.parallel == size * size * (25 * 4 + 4 * 3)


def test_the_chain_of_a_wavenet_is_its_depth():
    explanation = sampler("wavenet").explain()
    blocks = len(case("wavenet").module.config.dilations)
    assert set(explanation.chain) == {"pixel"}
    assert blocks * 2 <= explanation.chain["pixel"] <= 3 * blocks + 3


# ---- memory


@pytest.mark.parametrize("name", CASES)
def test_memory_is_what_is_allocated(name):
    compiled, memory = sampler(name), sampler(name).explain().memory
    run = compiled.start(5, context=case(name).contexts(5)).run
    assert 5 * memory.state == run.state.untyped_storage().nbytes()
    assert 5 * memory.contexts == sum(c.untyped_storage().nbytes() for c in run.contexts)
    assert memory.weights == compiled.program.weights.untyped_storage().nbytes()
    if FAST == "cpu":
        assert memory.packed == compiled.machine.memory()


@pytest.mark.needs_extension
def test_memory_is_what_the_process_grows_by(tmp_path):
    """A sampler of some megabytes, loaded and started for a large batch: resident memory grows as explained."""
    import subprocess
    import sys

    module = built(
        lambda: fastgen.create_model("wavenet", "tiny", event_shape=(4000,), skip_channels=768, head_channels=3072)
    )
    compiled = fastgen.Sampler(module, event_shape=(4000,), head=module.head, order="time", machine="cpu", threads=1)
    compiled.save(tmp_path / "sampler.safetensors")
    script = f"""
import resource, torch, fastgen
torch.set_num_threads(1)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
fastgen.Sampler.load({str(tmp_path / "small.safetensors")!r}, machine="cpu").sample(1)
before = resident()
sampler = fastgen.Sampler.load({str(tmp_path / "sampler.safetensors")!r}, machine="cpu", threads=1)
state = sampler.advance(sampler.start(64), 1100)
memory = sampler.explain().memory
print(resident() - before, memory.shared + 64 * memory.per_sample)
"""
    sampler("masked_stack").save(tmp_path / "small.safetensors")
    grown, explained = map(int, subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split())  # fmt: skip
    assert explained > 2**25
    assert abs(grown - explained) <= 0.1 * explained, (grown, explained)


# ---- words and pictures


@pytest.mark.parametrize("name", CASES)
def test_it_reads(name):
    compiled = sampler(name)
    explanation = compiled.explain()
    text = str(explanation)
    lines = text.splitlines()
    assert len(lines) == 11 + (explanation.context_network is not None)
    assert "to_input" in lines[1] or "values as they are" in lines[1]
    assert type(compiled.module).__name__ in lines[0]
    assert explanation.causal
    assert "causal: none of the" in lines[2 + (explanation.context_network is not None)]
    assert f"{len(compiled.program.draws)} draws" in text


def test_a_loaded_sampler_tells_what_its_program_tells(tmp_path):
    compiled = sampler("masked_stack")
    compiled.save(tmp_path / "sampler.safetensors")
    loaded = fastgen.Sampler.load(tmp_path / "sampler.safetensors", machine=FAST, threads=1).explain()
    explanation = compiled.explain()
    assert loaded.memory == explanation.memory
    assert loaded.chain == explanation.chain
    assert loaded.instructions == explanation.instructions
    assert loaded.work.per_step == explanation.work.per_step
    assert loaded.field is None
    assert loaded.work.textbook is None
    assert str(loaded).count("unknown: the sampler was loaded from a file") == 3
    for use in (loaded.receptive_field, lambda: loaded.save_ready_times(tmp_path / "ready.png")):
        with pytest.raises(ValueError, match="was loaded from a file"):
            use()


def test_an_output_outside_the_event_is_refused(tmp_path):
    explanation = sampler("pixelcnn_colour").explain()
    for position in ((6, 0), (0, -1), (3,)):
        with pytest.raises(ValueError, match=r"position must lie in the grid \(6, 5\), got"):
            explanation.save_ready_times(tmp_path / "ready.png", position)
    with pytest.raises(ValueError, match=r"channel must be 0 \.\. 2, got 3"):
        explanation.receptive_field((0, 0), 3)


@pytest.mark.parametrize(
    "name", ["pixelcnn", "pixelcnn_colour", "pixelcnn_pp", "wavenet", "made", "made_permuted", "video"]
)
def test_the_ready_times_of_an_output_are_a_picture(name, tmp_path):
    image = pytest.importorskip("matplotlib.image", reason="no matplotlib")
    explanation = sampler(name).explain()
    explanation.save_ready_times(tmp_path / "last.png")
    grid = explanation.field.seen.shape[1:]
    explanation.save_ready_times(str(tmp_path / "first.png"), tuple(0 for _ in grid))
    pixels = [image.imread(tmp_path / f"{which}.png") for which in ("last", "first")]
    assert all(p.shape[0] > 300 and p.shape[1] > 600 and p.std() > 0.05 for p in pixels)
    assert pixels[0].shape != pixels[1].shape or (pixels[0] != pixels[1]).any()


def test_a_missing_matplotlib_is_said(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"save_ready_times needs matplotlib: pip install fastgen-kernels\[zoo\]"):
        sampler("masked_stack").explain().save_ready_times(tmp_path / "ready.png")
