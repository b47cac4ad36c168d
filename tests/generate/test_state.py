"""States: start, advance, fork, save and resume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fastgen
from tests.generate.compiled import CASES, case, sampler

NAMES = [
    "masked_stack",
    "pixelcnn_colour",
    "gated_pixelcnn",
    "wavenet_mixture",
    "wavenet_wide",
    "tokens_last",
    "made",
    "gaussian",
]


@pytest.mark.parametrize("name", CASES)
def test_bitwise_the_same_after_save_and_resume(name, tmp_path):
    compiled, context = sampler(name), case(name).contexts(3)
    whole, log_prob = compiled.sample(3, seed=12, context=context, temperature=0.9, return_log_prob=True)
    state = compiled.start(3, seed=12, context=context, temperature=0.9, log_prob=True)
    compiled.advance(state, compiled.steps // 2).save(tmp_path / "state.safetensors")
    del state
    resumed = compiled.load_state(tmp_path / "state.safetensors")
    assert resumed.step == compiled.steps // 2
    compiled.advance(resumed, compiled.steps)
    assert torch.equal(resumed.levels, whole)
    assert torch.equal(resumed.run.log_prob, log_prob)


@pytest.mark.parametrize("name", NAMES)
def test_a_known_region_is_kept_over_save_and_resume(name, tmp_path):
    compiled, context, known = sampler(name), case(name).contexts(2), case(name).levels(2)
    mask = torch.rand(known.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    options = {"known": known, "known_mask": mask, "context": context}
    state = compiled.advance(compiled.start(2, seed=3, **options), compiled.steps // 3)
    state.save(tmp_path / "state.safetensors")
    resumed = compiled.advance(compiled.load_state(tmp_path / "state.safetensors"), compiled.steps)
    assert torch.equal(resumed.levels, compiled.sample(2, seed=3, **options))


@pytest.mark.parametrize("name", NAMES)
def test_forks_share_the_past_and_differ_after_it(name):
    compiled, context = sampler(name), case(name).contexts(3)
    state = compiled.start(3, seed=2, context=context, log_prob=True)
    compiled.advance(state, compiled.steps // 3)
    before = state.run.state.clone()
    forks = state.fork([0, 0, 1, 2, 2])
    compiled.advance(forks, compiled.steps)
    assert torch.equal(state.run.state, before)
    past = torch.from_numpy(compiled.order.steps < compiled.steps // 3).reshape(compiled.event_shape)
    for i, origin in enumerate([0, 0, 1, 2, 2]):
        assert torch.equal(forks.levels[i][past], state.levels[origin][past])
    assert len(forks.levels.flatten(1).unique(dim=0)) == 5
    compiled.advance(state, compiled.steps)
    assert not any(torch.equal(forks.levels[i], state.levels[j]) for i in range(5) for j in range(3))


@pytest.mark.parametrize("name", NAMES)
def test_forks_with_the_same_noise_are_their_origins(name):
    compiled, context = sampler(name), case(name).contexts(3)
    state = compiled.start(3, seed=2, context=context, log_prob=True)
    compiled.advance(state, compiled.steps // 2)
    forks = state.fork([2, 0], same_noise=True)
    compiled.advance(forks, compiled.steps)
    compiled.advance(state, compiled.steps)
    assert torch.equal(forks.levels, state.levels[[2, 0]])
    assert torch.equal(forks.run.log_prob, state.run.log_prob[[2, 0]])


def test_many_forks_of_one_sample_go_on_as_it_does():
    """Few samples sum the taps of several steps at once, many do not: a fork goes on in the way of its origin."""
    compiled = sampler("wavenet_wide")
    state = compiled.advance(compiled.start(1, seed=2), 21)
    forks = compiled.advance(state.fork([0] * 9, same_noise=True), compiled.steps)
    assert torch.equal(forks.levels, compiled.sample(1, seed=2).expand(9, -1))


def test_a_fork_takes_the_sample_indices_it_is_given():
    compiled = sampler("masked_stack")
    start = compiled.start(1, seed=4)
    forks = compiled.advance(start.fork([0, 0, 0], first_sample=5), compiled.steps)
    assert torch.equal(forks.levels, compiled.sample(8, seed=4)[5:])


@pytest.mark.parametrize("name", NAMES)
def test_samples_may_start_at_any_index(name):
    compiled, context = sampler(name), case(name).contexts(6)
    part = {k: v[4:] for k, v in context.items()} if isinstance(context, dict) else context
    state = compiled.start(2, seed=4, first_sample=4, context=part)
    assert torch.equal(compiled.advance(state, compiled.steps).levels, compiled.sample(6, seed=4, context=context)[4:])


def test_a_state_stops_at_the_end():
    compiled = sampler("masked_stack")
    state = compiled.start(2, seed=0)
    assert compiled.advance(state, 10 * compiled.steps).step == compiled.steps
    finished = state.levels
    assert torch.equal(compiled.advance(state, 5).levels, finished)


def test_a_state_that_is_copied_can_be_rewound():
    compiled = sampler("causal_unet")
    state = compiled.advance(compiled.start(2, seed=1), 20)
    kept = state.run.state.clone(), state.run.levels.clone()
    first = compiled.advance(state, 24).levels
    state.run.state.copy_(kept[0])
    state.run.levels.copy_(kept[1])
    state.step = 20
    assert torch.equal(compiled.advance(state, 24).levels, first)


def test_wrong_uses_are_refused(tmp_path):
    compiled = sampler("masked_stack")
    state = compiled.start(2, seed=0)
    for indices in ([], [2], [-1], [0, 5], [0.5], [True], 0, [[0]]):
        with pytest.raises(ValueError, match=r"indices must be one or more of 0 \.\. 1, got"):
            state.fork(indices)
    for steps in (-1, 1.5):
        with pytest.raises(ValueError, match=f"steps must be an integer, 0 or more, got {steps}"):
            compiled.advance(state, steps)
    for first in (-1, 0.5, 2**48):
        for use in (lambda first: compiled.start(1, first_sample=first), lambda first: state.fork([0], False, first)):
            with pytest.raises(ValueError, match=rf"first_sample must be an integer in 0 \.\. \d+, got {first}"):
                use(first)
    state.save(tmp_path / "state.safetensors")
    with pytest.raises(ValueError, match="is a state of another program"):
        sampler("causal_unet").load_state(tmp_path / "state.safetensors")


def test_a_file_of_another_kind_is_refused(tmp_path):
    compiled, path = sampler("masked_stack"), tmp_path / "file.safetensors"
    compiled.save(path)
    with pytest.raises(ValueError, match=r"must hold a state, .* got a sampler, which Sampler\.load reads"):
        compiled.load_state(path)
    compiled.start(1).save(path)
    with pytest.raises(ValueError, match=r"must hold a sampler, .* got a state, which load_state reads"):
        fastgen.Sampler.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    for load, wanted in ((fastgen.Sampler.load, "a sampler"), (compiled.load_state, "a state")):
        with pytest.raises(ValueError, match=rf"must hold {wanted}, .* got none"):
            load(path)
    path.write_text("no tensors")
    for load in (fastgen.Sampler.load, compiled.load_state):
        with pytest.raises(ValueError, match="is no safetensors file"):
            load(path)


def test_counts_may_be_numpy_integers():
    compiled = sampler("masked_stack")
    found = compiled.start(np.int64(2), first_sample=np.int64(3))
    compiled.advance(found, np.int32(5))
    expected = compiled.start(2, first_sample=3)
    compiled.advance(expected, 5)
    assert torch.equal(found.levels, expected.levels)
