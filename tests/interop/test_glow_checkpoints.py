"""State dicts of public Glows, read into fastgen's: the same densities, the same samples."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.interop.glow_checkpoints import glow_from_checkpoint
from fastgen.interop.glow_conventions import ALLOWED, CHAIYUJIN, ROSINALITY, Y0AST, GlowConventions
from tests.interop.public_glow import ChaiyujinGlow, PublicGlow, RosinalityGlow, Y0astGlow

SHAPE = (3, 8, 8)
PUBLIC = {
    "rosinality": (RosinalityGlow, ROSINALITY),
    "chaiyujin": (ChaiyujinGlow, CHAIYUJIN),
    "y0ast": (Y0astGlow, Y0AST),
}
FLAGS = [
    {"squeeze": "corner_major"},
    {"kept": "second"},
    {"squeeze": "corner_major", "kept": "second"},
    {"coupling": "interleaved"},
    {"coupling": "shift_first"},
    {"coupling": "scale_first"},
    {"split_prior": "interleaved"},
    {"split_prior": "shift_first"},
    {"split_prior": "scale_first"},
    {"top_prior": "interleaved"},
    {"top_prior": "scale_first", "kept": "second"},
    {"norm_bias": "subtracted"},
    {"norm_bias": "after_scale"},
    {"sigmoid_offset": 0.5},
    {"data_offset": 0.25},
]
BUILDS = {
    "rosinality": [{"lu": True}, {"lu": False}, {"affine": False}],
    "chaiyujin": [{"lu": True}, {"lu": False}, {"affine": False}, {"learn_top": False}],
    "y0ast": [{"lu": True}, {"lu": False}, {"affine": False}, {"learn_top": False}],
}
CASES = [
    *[(name, build, {}) for name, builds in BUILDS.items() for build in builds],
    *[(name, {"lu": lu}, flags) for name in ("rosinality", "chaiyujin") for lu in (True, False) for flags in FLAGS],
    ("chaiyujin", {}, {"norm_log_factor": 3.0}),
]


def public(name: str, build: dict, flags: dict) -> tuple[PublicGlow, GlowConventions]:
    torch.manual_seed(0)
    kind, conventions = PUBLIC[name]
    return kind(3, scales=2, steps=2, hidden=5, **build, **flags), dataclasses.replace(conventions, **flags)


def latents(z: Tensor, kept: str) -> list[Tensor]:
    """fastgen's, in the checkpoint's order: the top has what a coupling kept in the other half."""
    split, top = z.split([6 * 16, 24 * 4], 1)
    top = top.view(-1, 24, 2, 2)
    return [split.view(-1, 6, 4, 4), top if kept == "first" else top.roll(12, 1)]


@pytest.mark.parametrize(("name", "build", "flags"), CASES, ids=str)
@torch.no_grad()
def test_densities_and_samples_are_those_of_the_checkpoint(name, build, flags):
    theirs, conventions = public(name, build, flags)
    ours = glow_from_checkpoint(theirs.double().state_dict(), SHAPE, conventions)
    x = torch.rand(4, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
    z = torch.randn(4, math.prod(SHAPE), dtype=torch.float64)
    expected = theirs.decode(latents(z, conventions.kept))
    torch.testing.assert_close(ours.inverse(z)[0], expected)


@pytest.mark.parametrize("flags", [{}, {"kept": "second"}, {"top_prior": "scale_first"}], ids=str)
@pytest.mark.parametrize("learn_top", [True, False])
@pytest.mark.parametrize("condition", ["class", "vector"])
@pytest.mark.parametrize("name", ["chaiyujin", "y0ast"])
@torch.no_grad()
def test_a_condition_moves_the_prior_as_in_the_checkpoint(name, condition, learn_top, flags):
    theirs, conventions = public(name, {"classes": 3, "learn_top": learn_top}, flags)
    conventions = dataclasses.replace(conventions, condition=condition)
    ours = glow_from_checkpoint(theirs.double().state_dict(), SHAPE, conventions)
    x, labels = torch.rand(4, *SHAPE, dtype=torch.float64), torch.tensor([2, 0, 1, 2])
    given = F.one_hot(labels, 3).double() if condition == "class" else torch.rand(4, 3, dtype=torch.float64)
    context = labels if condition == "class" else given
    found = ours.log_prob(x, context)
    torch.testing.assert_close(found, theirs.log_prob(x, given))
    assert (found != ours.log_prob(x, context.roll(1, 0))).any()
    z = torch.randn(4, math.prod(SHAPE), dtype=torch.float64)
    expected = theirs.decode(latents(z, conventions.kept), given)
    torch.testing.assert_close(ours.inverse(z, context)[0], expected)


def test_a_condition_of_another_size_is_refused():
    theirs, conventions = public("chaiyujin", {"classes": 3}, {})
    state = theirs.state_dict()
    state["project_ycond.bias"] = state["project_ycond.bias"][1:]
    with pytest.raises(ValueError, match=r"project_ycond\.bias must have 48.*, got 47"):
        glow_from_checkpoint(state, SHAPE, conventions)


@pytest.mark.parametrize("name", PUBLIC)
def test_factors_are_kept_as_they_are(name):
    theirs, conventions = public(name, {"lu": True}, {})
    layer = glow_from_checkpoint(theirs.state_dict(), SHAPE, conventions).flow.scales[0].layers[1]
    state, begin, names = (
        theirs.state_dict(),
        conventions.names.step.format(scale=0, step=0, layer=1),
        conventions.names,
    )
    assert layer.lu
    assert torch.equal(layer.lower, state[begin + names.lower])
    assert torch.equal(layer.log_s, state[begin + names.log_s])


def test_a_model_that_was_read_is_not_initialised_by_its_first_batch():
    theirs, conventions = public("rosinality", {}, {})
    model = glow_from_checkpoint(theirs.state_dict(), SHAPE, conventions).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.log_prob(torch.rand(2, *SHAPE))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_names_of_a_model_that_ran_on_several_devices_are_read():
    theirs, conventions = public("rosinality", {}, {})
    state = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    found = glow_from_checkpoint(state, SHAPE, conventions).state_dict()
    expected = glow_from_checkpoint(theirs.state_dict(), SHAPE, conventions).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("flag", ALLOWED)
def test_an_unknown_convention_is_refused(flag):
    with pytest.raises(ValueError, match=f"{flag} must be one of .*, got 'upside down'"):
        dataclasses.replace(ROSINALITY, **{flag: "upside down"})


def test_scaling_before_the_shift_is_refused():
    with pytest.raises(ValueError, match=r"shift_before_scale must be True, .* got False"):
        dataclasses.replace(CHAIYUJIN, shift_before_scale=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("blocks.0.flows.1.invconv.w_l"), r"state must have .*invconv.weight .*, got none"),
        (
            lambda state: state.pop("blocks.1.flows.0.coupling.net.2.bias"),
            r"state must have blocks.1.flows.0.coupling.net.2.bias .*, got none",
        ),
        (
            lambda state: state.update(project_ycond=torch.ones(1)),
            r"state must have no other names than.*, got 1: project_ycond",
        ),
        (lambda state: state.clear(), r"state must have blocks.0.flows.0.actnorm.loc, got another layout"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(change, message):
    theirs, conventions = public("rosinality", {}, {})
    state = theirs.state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        glow_from_checkpoint(state, SHAPE, conventions)


def test_images_of_another_number_of_channels_are_refused():
    theirs, conventions = public("rosinality", {}, {})
    with pytest.raises(ValueError, match=r"blocks\.0\.flows\.0\.actnorm\.loc must have 4 channels.*, got 12"):
        glow_from_checkpoint(theirs.state_dict(), (1, 8, 8), conventions)


@pytest.mark.parametrize("name", PUBLIC)
def test_whatever_a_state_dict_holds_is_read_or_refused(name):
    """Any tensor replaced by another shape, dtype or thing: ValueError, and no memory that the state does not have."""
    theirs, conventions = public(name, {}, {})
    good = theirs.state_dict()
    choose = random.Random(0)
    for key in choose.sample(list(good), 12):
        value = good[key]
        others = [None, "x", 3, value.to(torch.complex64), value[..., None], value.reshape(-1)[:0], torch.zeros(())]
        others += [torch.zeros(7), torch.zeros(1).expand(1 << 20, 1, 1, 1), torch.zeros(1).expand(1 << 33)]
        for other in choose.sample(others, 4):
            with contextlib.suppress(ValueError):
                glow_from_checkpoint(good | {key: other}, SHAPE, conventions)
    for state in (None, [], {3: torch.zeros(1)}, torch.zeros(1)):
        with pytest.raises(ValueError, match="state must be a state dict, names to tensors"):
            glow_from_checkpoint(state, SHAPE, conventions)
