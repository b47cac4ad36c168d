"""A sampler verifies itself: programs made wrong on purpose are refused, with the first position; others are not."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen.generate.compile import any_length as compiling
from fastgen.generate.errors import VerificationError
from fastgen.generate.frontend.rules import RULES
from fastgen.generate.heads import Categorical, DiscretizedLogisticMixture, Gaussian
from fastgen.generate.verification.self_check import self_check
from tests.generate.seeded import built

aten = torch.ops.aten
LEVELS = 12


class Tokens(nn.Module):
    """A causal network of tokens whose ``hidden`` a subclass changes; output t sees inputs t - 2 .. t."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.other = nn.Embedding(LEVELS, 8), nn.Embedding(LEVELS, 8)
        self.mix, self.out = nn.Conv1d(8, 8, 3), nn.Conv1d(8, LEVELS, 1)
        self.scale = 1.0

    def hidden(self, x: Tensor) -> Tensor:
        return self.embed(x)

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x).transpose(1, 2)
        return self.scale * self.out(torch.tanh(self.mix(nn.functional.pad(h, (2, 0)))))


class Image(nn.Module):
    """One masked convolution (type A) and a 1 x 1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, LEVELS, 1)
        mask = torch.ones(3, 3)
        mask[1, 1:], mask[2] = 0, 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(nn.functional.conv2d(x, self.conv.weight * self.mask, self.conv.bias, padding=1)))


def tokens(kind: type[nn.Module] = Tokens, steps: int = 40, **options) -> fastgen.Sampler:
    return fastgen.Sampler(built(kind), (steps,), Categorical(LEVELS), "time", predicts="next", **options)


def image(**options) -> fastgen.Sampler:
    return fastgen.Sampler(built(Image), (1, 6, 5), Categorical(LEVELS, to_input="symmetric"), **options)


def broken_at(call) -> str:
    with pytest.raises(VerificationError) as caught:
        call()
    assert "The layer was not found" not in str(caught.value)
    return re.search(r"at position (\d+|\(.*?\))", str(caught.value))[1]


def reloaded(sampler: fastgen.Sampler) -> fastgen.Sampler:
    """The sampler after its program was changed in place."""
    sampler.run_on(None, sampler.compiled)
    return sampler


@pytest.fixture
def unchecked_lengths(monkeypatch):
    """Extrapolation as it was: two short lengths, and nothing else."""
    monkeypatch.setattr(compiling, "departure", lambda *_: "")
    monkeypatch.setattr(compiling, "_free_of_the_end", lambda *_: True)


class Switches(Tokens):
    def hidden(self, x: Tensor) -> Tensor:
        later = torch.arange(x.shape[1]) >= 150
        return torch.where(later[:, None], self.other(x), self.embed(x))


class Branches(Tokens):
    def hidden(self, x: Tensor) -> Tensor:
        return self.embed(x) * (2 if x.shape[1] > 150 else 1)


class Tail(Tokens):
    def hidden(self, x: Tensor) -> Tensor:
        return torch.cat([self.embed(x[:, :-10]), self.other(x[:, -10:])], 1)


@pytest.mark.parametrize(("kind", "first"), [(Switches, "150"), (Branches, "0")])
def test_an_extrapolation_past_a_switch_is_caught(unchecked_lengths, kind, first):
    """generation_01, generation_03: planted again by leaving out the comparison of the lengths."""
    assert broken_at(lambda: tokens(kind, 200)) == first


def test_a_tail_at_the_end_is_caught(unchecked_lengths):
    assert broken_at(lambda: tokens(Tail, 200)).isdigit()


class Wraps(Tokens):
    def hidden(self, x: Tensor) -> Tensor:
        return self.embed(x) * ((x + 17) % 5)[..., None]


class Divides(Tokens):
    def hidden(self, x: Tensor) -> Tensor:
        return self.embed(x) * torch.remainder(x - 7.5, 5.0)[..., None]


def test_integers_that_lose_their_last_digits_are_caught(monkeypatch):
    """generation_04: as float32 rounds integers above 2^24, here from 2^3 on."""
    right = RULES[aten.add.Tensor]
    monkeypatch.setitem(RULES, aten.add.Tensor, lambda graph, a, b, **k: right(graph, a, 16 if b == 17 else b, **k))
    assert broken_at(lambda: tokens(Wraps)) == "0"


def test_a_division_that_rounds_the_other_way_is_caught(monkeypatch):
    """generation_05: fmod for remainder, which differ below 0."""
    for operator in (aten.remainder.Scalar, aten.remainder.Tensor):
        monkeypatch.setitem(RULES, operator, RULES[aten.fmod.Scalar])
    assert int(broken_at(lambda: tokens(Divides))) <= 2


def test_a_layer_that_a_frozen_copy_drops_is_caught():
    """generation_07: the copy leaves out what the layer does beside its mask."""
    sampler, module = tokens(), built(Tokens)
    module.mix.register_forward_hook(lambda layer, given, out: out + 0.01)
    sampler.request = replace(sampler.request, module=module)
    assert broken_at(lambda: self_check(sampler)) == "0"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_module_of_less_than_float32_is_caught(dtype):
    """generation_08: the program is float32 and the module is not."""
    module = built(Tokens).to(dtype)
    sampler = fastgen.Sampler(copy.deepcopy(module).float(), (40,), Categorical(LEVELS), "time", predicts="next")
    sampler.request = replace(sampler.request, module=module)
    with pytest.raises(VerificationError, match=r"less than float32.* position 0 "):
        self_check(sampler)


def test_refresh_notices_what_it_does_not_see_and_keeps_the_old_program():
    """generation_20 (b): a Python attribute and a replaced plain tensor."""
    module = built(Tokens)
    sampler = fastgen.Sampler(module, (200,), Categorical(LEVELS), "time", predicts="next")
    before = sampler.sample(1, seed=0)
    module.scale = 5.0
    assert broken_at(sampler.refresh) == "0"
    assert torch.equal(sampler.sample(1, seed=0), before)
    module.scale = 1.0
    with torch.no_grad():
        module.out.bias += 1
    sampler.refresh()
    assert torch.equal(sampler.sample(1, seed=0), sampler.sample_naive(1, seed=0))


def test_a_tap_off_by_one_is_caught():
    sampler = tokens(verify=False)
    program = sampler.program
    tap = next(o for o in program.operands if o.map.column_stride == 1 and o.map.offset < 0)
    tap.map.offset += 1
    assert int(broken_at(lambda: self_check(reloaded(sampler)))) <= 2


def test_a_border_that_is_wrong_in_the_last_row_only_is_caught():
    sampler = image(verify=False)
    read = [sampler.program.operands[s.operand] for s in sampler.program.segments]
    above = next(o for o in read if o.map.row_stride == 5 and o.map.offset < 0 and o.box.row1 > 6)
    above.box.row1 = 5
    assert broken_at(lambda: self_check(reloaded(sampler))).startswith("(5,")


@pytest.mark.parametrize("which", ["table", "matrix"])
def test_one_wrong_weight_is_caught(which):
    sampler = tokens(verify=False)
    module = sampler.module
    value = (module.embed.weight[7, 3] if which == "table" else module.mix.weight[2, 5, 1]).item()
    places = (sampler.program.weights == value).nonzero()
    assert len(places)
    sampler.program.weights[places[0]] += 0.01
    assert broken_at(lambda: self_check(reloaded(sampler))).isdigit()


def test_a_wrong_scale_of_a_continuous_head_is_caught():
    class Values(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 2, 3)

        def forward(self, x):
            return self.conv(nn.functional.pad(x, (3, 0))[..., :-1])

    sampler = fastgen.Sampler(built(Values), (1, 30), Gaussian(), "time")
    sampler.program.constants += 1e-3
    assert broken_at(lambda: self_check(reloaded(sampler))) == "0"


# ---- no false alarm


class Rounds(Tokens):
    """Sums that lie on an edge for many inputs, and infinite logits."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        steps = torch.floor(out.sum(1, keepdim=True) * 10) + (out[:, 1:2] > out[:, 2:3])
        hidden = torch.arange(LEVELS)[:, None] == 3
        return (out + steps).masked_fill(hidden, float("-inf"))


class Widens(Tokens):
    """Casts on the way, in float32 whatever it is given."""

    def hidden(self, x: Tensor) -> Tensor:
        return self.embed(x).float() + torch.zeros(1, dtype=torch.float32)


@pytest.mark.parametrize("kind", [Rounds, Widens])
def test_no_false_alarm(kind):
    tokens(kind)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_rounded_weights_are_verified_before_they_are_rounded(weights):
    tokens(weights=weights)


def test_a_head_that_feeds_raw_draws_is_verified():
    network = built(lambda: fastgen.nn.MaskedConv2d(3, 30, 3, mask="A"))
    head = DiscretizedLogisticMixture(3, 16, feed_raw=True)
    sampler = fastgen.Sampler(network, (3, 4, 3), head)
    sampler.program.constants += 1e-3
    assert broken_at(lambda: self_check(reloaded(sampler))) == "(0, 0)"


def test_a_double_module_is_accepted():
    fastgen.Sampler(built(Tokens).double(), (40,), Categorical(LEVELS), "time", predicts="next")


def test_the_users_random_numbers_are_not_moved_and_verify_false_skips(monkeypatch):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    tokens()
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr("fastgen.generate.sampler.self_check", lambda _: pytest.fail("verified"))
    tokens(verify=False)
