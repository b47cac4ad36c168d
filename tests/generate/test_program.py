"""Programs: one size for any event, data that round trips, new weights in an old program."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastgen
from fastgen.generate import CompileError, heads
from fastgen.generate.ir.instructions import STATE
from fastgen.generate.ir.program import Program
from tests.generate.compiled import CASES, FAST, case, sampler
from tests.generate.seeded import built

ROUND_TRIP = [
    "masked_stack",
    "pixelcnn_colour",
    "made_permuted",
    "gated_pixelcnn",
    "tokens_last",
    "causal_unet",
    "gaussian",
]


def patterns(program: Program) -> dict[str, int]:
    return {name: len(tensor) for name, tensor in program.to_tensors().items() if name not in ("weights", "constants")}


# ---- size


@pytest.mark.parametrize("name", ["pixelcnn", "gated_pixelcnn_colour", "masked_stack"])
def test_the_number_of_patterns_does_not_depend_on_the_image_s_size(name):
    made = case(name)
    channels = made.event_shape[0]
    small, large = (made.sampler(event_shape=(channels, n, n)) for n in (16, 32))
    assert patterns(small.program) == patterns(large.program)
    assert torch.equal(small.program.weights, large.program.weights)
    rows = [sum(b.positions * b.channels for b in s.program.buffers if b.where == STATE) for s in (small, large)]
    assert rows[1] < 2.2 * rows[0], "rings keep rows, not the image"


def test_the_number_of_patterns_of_a_strided_network_does_not_depend_on_the_image_s_size():
    module = built(lambda: fastgen.create_model("pixelcnn_pp", "tiny", event_shape=(1, 16, 16), filters=4))
    small, large = (fastgen.Sampler(module, event_shape=(1, n, n), head=module.head, machine=FAST) for n in (16, 24))
    assert patterns(small.program) == patterns(large.program)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pixelcnn", "pixelcnn_pp", "gated_pixelcnn_colour"])
def test_the_number_of_patterns_is_the_same_at_32_and_64(name):
    made = case(name)
    channels = made.event_shape[0]
    small, large = (made.sampler(event_shape=(channels, n, n)) for n in (32, 64))
    assert patterns(small.program) == patterns(large.program)


@pytest.mark.parametrize(
    "name", ["wavenet", "wavenet_one_hot", "tokens_last", "temporal_conv_net", "causal_unet", "bytenet"]
)
def test_the_program_of_a_waveform_is_the_same_at_any_length(name):
    made = case(name)
    lead = made.event_shape[:-1]
    exact, short, long = (made.sampler(event_shape=(*lead, n)) for n in (96, 1000, 100_000))
    assert patterns(short.program) == patterns(long.program) == patterns(exact.program)
    assert short.program.state_size == long.program.state_size
    assert torch.equal(exact.program.weights, long.program.weights)
    drawn = long.stream(2, 96, seed=5, chunk=96)
    assert torch.equal(next(drawn), exact.sample(2, seed=5))


def test_taps_of_earlier_steps_are_summed_for_several_steps_at_once():
    program = sampler("wavenet_wide").program
    assert [i.body.block for i in program.computes if i.body.block > 1] == [2, 4, 8]  # a dilation of 1 has too few
    assert all(i.body.block == 1 for i in sampler("wavenet").program.computes)  # too small to be worth it


def test_frames_of_a_context_limit_a_long_waveform():
    made = case("wavenet_mixture")
    context = {"class": torch.tensor([1]), "frames": torch.randn(1, 3, 50)}
    long = made.sampler(event_shape=(600,), example_context=context)
    assert long.program.steps == 600
    module, head = made.module, made.head
    drawn, log_prob = long.sample(1, seed=3, context=context, return_log_prob=True)
    exact = head.log_prob(module(head.to_input(drawn), context), drawn)
    torch.testing.assert_close(log_prob, exact.double(), rtol=1e-5, atol=0)


# ---- data


@pytest.mark.parametrize("name", CASES)
def test_tensors_round_trip(name):
    tensors = sampler(name).program.to_tensors()
    again = Program.from_tensors(tensors).to_tensors()
    assert tensors.keys() == again.keys()
    for key, tensor in tensors.items():
        assert tensor.dtype == again[key].dtype
        assert torch.equal(tensor, again[key]), key


@pytest.mark.parametrize("name", CASES)
def test_a_saved_sampler_generates_the_same(name, tmp_path):
    compiled, context = sampler(name), case(name).contexts(3)
    compiled.save(tmp_path / "sampler.safetensors")
    head = compiled.head if name == "custom" else None
    loaded = fastgen.Sampler.load(tmp_path / "sampler.safetensors", machine=FAST, threads=1, head=head)
    assert loaded.fingerprint == compiled.fingerprint
    drawn, log_prob = compiled.sample(3, seed=2, context=context, return_log_prob=True)
    again, again_log_prob = loaded.sample(3, seed=2, context=context, return_log_prob=True)
    assert torch.equal(drawn, again)
    assert torch.equal(log_prob, again_log_prob)


def test_a_loaded_sampler_says_that_it_has_no_module(tmp_path):
    sampler("masked_stack").save(tmp_path / "sampler.safetensors")
    loaded = fastgen.Sampler.load(tmp_path / "sampler.safetensors", machine=FAST)
    for use in (
        loaded.refresh,
        lambda: loaded.sample_naive(1),
        lambda: loaded.log_prob(case("masked_stack").levels(1)),
    ):
        with pytest.raises(CompileError, match="loaded from a file and has no module"):
            use()


def test_a_state_outlives_the_sampler_that_made_it(tmp_path):
    compiled = sampler("masked_stack")
    compiled.advance(compiled.start(2, seed=1), 30).save(tmp_path / "state.safetensors")
    compiled.save(tmp_path / "sampler.safetensors")
    loaded = fastgen.Sampler.load(tmp_path / "sampler.safetensors", machine=FAST)
    state = loaded.load_state(tmp_path / "state.safetensors")
    assert torch.equal(loaded.advance(state, loaded.steps).levels, compiled.sample(2, seed=1))


# ---- new weights


def train_one_step(module: nn.Module, made) -> None:
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    levels = made.levels(4)
    inputs = made.head.to_input(levels)
    output = module(inputs) if made.context is None else module(inputs, made.contexts(4))
    output = output if made.adapter is None else made.adapter(output)
    output.square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "name",
    [
        "masked_stack",
        "made",
        "pixel_shuffle",
        "gated_pixelcnn",
        "wavenet",
        "tokens_last",
        "bytenet",
        "temporal_conv_net",
    ],
)
def test_refresh_after_a_training_step_equals_a_new_sampler(name):
    made = case(name)
    module = copy.deepcopy(made.module)
    made = type(made)(
        module, *[getattr(made, f) for f in ("event_shape", "head", "order", "predicts", "adapter", "context")]
    )
    compiled, context = made.sampler(), made.contexts(3)
    before = compiled.sample(3, seed=1, context=context)
    train_one_step(module, made)
    assert torch.equal(compiled.sample(3, seed=1, context=context), before), "a sampler keeps its weights until refresh"
    compiled.refresh()
    fresh = made.sampler()
    assert torch.equal(compiled.program.weights, fresh.program.weights)
    assert torch.equal(compiled.program.constants, fresh.program.constants)
    levels = made.levels(3)
    scores = [
        s.sample(3, known=levels, known_mask=levels == levels, context=context, return_log_prob=True)[1]
        for s in (compiled, fresh)
    ]
    assert torch.equal(*scores)
    assert torch.equal(compiled.sample(3, seed=1, context=context), fresh.sample(3, seed=1, context=context))


class Sparse(nn.Module):
    """A causal convolution whose oldest tap is zero."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(1, 4, 1)
        self.conv = nn.Conv1d(4, 4, 3, groups=groups)
        with torch.no_grad():
            self.conv.weight[:, :, 0] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.mix(F.pad(x[:, None], (3, -1))))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_changed_zero_pattern_needs_a_new_sampler(groups):
    module, head = built(lambda: Sparse(groups)), heads.Categorical(4, to_input="unit")
    compiled = fastgen.Sampler(module, event_shape=(12,), head=head, order="time", machine=FAST)
    before = compiled.sample(2, seed=0)
    with torch.no_grad():
        module.conv.weight[1, 0, 0] = 0.5
    with pytest.raises(CompileError, match="weights that were zero are not any more"):
        compiled.refresh()
    assert torch.equal(compiled.sample(2, seed=0), before)
