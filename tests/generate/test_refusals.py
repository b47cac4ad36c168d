"""A refusal says the true reason and what to do (fault generation_19_messages)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from fastgen.generate import NotCausalError, UnsupportedOperator, heads
from tests.generate.compiled import FAST

HEAD = heads.Categorical(12)


class Tokens(nn.Module):
    def __init__(self, shift: int = 0, turn=lambda h: h.transpose(1, 2)) -> None:
        super().__init__()
        self.embed, self.out, self.shift, self.turn = nn.Embedding(12, 8), nn.Linear(8, 12), shift, turn

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.turn(self.out(F.pad(h, (0, 0, 0, self.shift))[:, self.shift :]))


def refused(module: nn.Module, event_shape, head=HEAD, order="time", **options) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        fastgen.Sampler(module, event_shape, head, order, machine=FAST, **options)
    return str(caught.value)


@pytest.mark.parametrize("ahead", [1, 3])
def test_a_peek_under_predicts_next_names_the_element_and_does_not_advise_what_is_set(ahead):
    said = refused(Tokens(ahead), (8,), predicts="next")
    seen = "itself" if ahead == 1 else r"element (2,) (drawn at step 2)"
    assert f"scores element (0,) (drawn at step 0) depends on {seen}, through embed -> out" in said
    assert 'pass predicts="next"' not in said
    assert f"this one reads {ahead} further on" in said


def test_a_peek_at_the_element_itself_is_told_of_predicts_next_where_that_cures_it():
    said = refused(Tokens(), (8,))
    assert "scores element (0,) (drawn at step 0) depends on itself" in said
    assert 'pass predicts="next"' in said
    fastgen.Sampler(Tokens(), (8,), HEAD, "time", predicts="next", machine=FAST)
    assert 'pass predicts="next"' not in refused(Tokens(1), (8,))


@pytest.mark.parametrize("order", ["features", [1, 0, 2, 3]])
def test_orders_without_a_next_element_are_not_told_of_it(order):
    module = nn.Linear(4, 4)
    module.weight.data.tril_()
    said = refused(module, (4,), heads.Bernoulli(), order)
    assert "predicts" not in said
    assert ("not on itself: mask" in said) == (order == "features")


def test_colours_that_follow_one_another_are_told_of_sub_pixels():
    said = refused(nn.Conv2d(3, 3, 1), (3, 2, 2), heads.Bernoulli(), "raster")
    assert 'order="raster-subpixel"' in said


@pytest.mark.parametrize(
    ("turn", "way"),
    [(lambda h: h, "movedim(2, 1)"), (lambda h: h.transpose(0, 1), "permute(1, 2, 0)")],
)
def test_an_output_in_another_order_is_told_how_to_turn_it(turn, way):
    said = refused(Tokens(turn=turn), (8,), predicts="next")
    assert said.startswith("output must have shape [N, 12, 8] or [N, 1, 12, 8] (Categorical(levels=12)")
    assert f"pass adapter=lambda output: output.{way}" in said
    adapter = eval(f"lambda output: output.{way}")
    module = Tokens(turn=turn)
    compiled = fastgen.Sampler(module, (8,), HEAD, "time", predicts="next", adapter=adapter, machine=FAST)
    assert torch.equal(compiled.sample(2), compiled.sample_naive(2))


def test_an_output_of_another_size_is_not_told_to_turn_it():
    assert "adapter" not in refused(Tokens(), (8,), heads.Categorical(11))


class SecondResult(Tokens):
    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.out(h + torch.native_layer_norm(h, h.shape[-1:], None, None, 1e-5)[1]).transpose(1, 2)


def test_a_result_that_a_rule_does_not_give_is_named():
    with pytest.raises(UnsupportedOperator, match=r"result 1 of operator aten\.native_layer_norm.* has no rule, at "):
        fastgen.Sampler(SecondResult(), (8,), HEAD, "time", predicts="next", machine=FAST)


def test_what_is_not_causal_is_a_subclass_of_its_own():
    with pytest.raises(NotCausalError):
        fastgen.Sampler(Tokens(), (8,), HEAD, "time", machine=FAST)


class Behind(nn.Module):
    """A causal convolution, then something that no step program computes."""

    def __init__(self, spoil) -> None:
        super().__init__()
        self.conv, self.spoil = nn.Conv1d(1, 12, 2), spoil

    def forward(self, x: Tensor) -> Tensor:
        return self.spoil(self.conv(F.pad(x[:, None], (2, -1))))


def branch(h: Tensor) -> Tensor:
    return h if h.sum() > 0 else -h


def under_autocast(h: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return h @ torch.eye(8)


def without_gradients(h: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.lgamma(h)


REFUSALS = {
    "autocast": (under_autocast, "computes in torch.bfloat16", "without torch.autocast in forward"),
    "no_grad": (without_gradients, "has no rule", "docs/generate.md lists them"),
    "instance_norm": (F.instance_norm, "takes its statistics over positions", "Normalise over the channels"),
    "group_norm": (lambda h: F.group_norm(h, 2), "takes its statistics over positions", "Normalise over the channels"),
    "layer_norm": (lambda h: F.layer_norm(h, h.shape[1:]), "normalises over positions", "Normalise over the channels"),
    "batch_norm": (lambda h: F.batch_norm(h, None, None, training=True), "mixes samples", "Use running statistics"),
    "argmax": (lambda h: h + h.argmax(), "mixes samples and positions", "Name a dimension"),
    "fft": (lambda h: torch.fft.fft(h).real, "complex numbers, or over all positions", "a causal convolution"),
    "complex": (lambda h: torch.complex(h, h).abs(), "computes with complex numbers", "pairs of real ones"),
    "nonzero": (lambda h: h + (h > 0).nonzero().sum(), "size depends on the values", "torch.where with a mask"),
    "masked_select": (lambda h: h + h.masked_select(h > 0).sum(), "size depends on the values", "torch.where"),
    "item": (lambda h: h * h.max().item(), "reads a number of a tensor into Python", "Keep it a tensor"),
    "bilinear": (
        lambda h: h + F.bilinear(h.mT.contiguous(), h.mT.contiguous(), torch.ones(12, 12, 12)).mT,
        "multiplies two tensors",
        "an elementwise product",
    ),
    "lgamma": (torch.lgamma, "has no rule", "docs/generate.md lists them"),
    "noise": (lambda h: h + torch.rand_like(h), "draws random numbers", "Dropout must be off in eval"),
    "half": (lambda h: h.half().float(), "computes in torch.float16", "Compile a float32 copy"),
    "branch": (branch, "does not take Behind", "torch.where in place of an if"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_names_layer_line_reason_and_cure(name):
    spoil, reason, cure = REFUSALS[name]
    said = refused(Behind(spoil), (8,), heads.Categorical(12, to_input="unit"))
    assert reason in said
    assert cure in said
    assert "test_refusals.py" in said
    assert "line " in said
    assert "at module (" in said or "at forward" in said or "random numbers at " in said
