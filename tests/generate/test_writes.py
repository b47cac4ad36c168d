"""Networks that write to themselves in forward work as they are, and those that change at every call are refused."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

import fastgen
from fastgen.generate import CompileError, heads
from tests.generate.compiled import FAST
from tests.generate.writing_networks import CHANGING, LEVELS, WRITING, Network

HEAD = heads.Categorical(LEVELS, to_input="unit")
SHAPE = (1, 5, 6)


def network(name: str) -> nn.Module:
    torch.manual_seed(3)
    return Network(WRITING[name]())


def spoiled(module: nn.Module) -> None:
    """Adds noise to all parameters, as a training step does: what was masked is no longer zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def compiled(module: nn.Module) -> fastgen.Sampler:
    return fastgen.Sampler(module, event_shape=SHAPE, head=HEAD, machine=FAST)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("name", WRITING)
def test_a_network_that_writes_to_itself_works_as_it_is(name):
    """Fault generation_18: no advice and no call is needed."""
    module = network(name)
    sampler = compiled(module)
    drawn = sampler.sample(6, seed=1)
    assert sum(drawn.flatten().bincount() > 0) > 1
    module.eval()(torch.zeros(2, *SHAPE))  # writes its masks, if it does so after their use
    assert torch.equal(drawn, sampler.sample_naive(6, seed=1))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("name", WRITING)
def test_refresh_applies_the_masks_anew(name):
    module = network(name)
    sampler = compiled(module)
    before = sampler.sample(6, seed=1)
    spoiled(module)
    drawn = sampler.refresh().sample(6, seed=1)
    assert not torch.equal(before, drawn)
    module.eval()(torch.zeros(2, *SHAPE))
    assert torch.equal(drawn, sampler.sample_naive(6, seed=1))
    assert torch.equal(drawn, compiled(module).sample(6, seed=1))


@pytest.mark.parametrize("kind", CHANGING)
def test_a_network_that_changes_at_every_call_is_refused_by_the_name_of_what_changes(kind):
    torch.manual_seed(0)
    module = Network(kind())
    with pytest.raises(CompileError, match=re.escape(repr(CHANGING[kind]))):
        compiled(module)


def test_a_write_of_the_input_that_the_next_output_reads_is_refused():
    """One that the alternation of two inputs does not show: what is kept has no effect on them."""

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, LEVELS, 1)
            self.register_buffer("largest", torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.conv(x[:, None]) * self.largest
            self.largest.copy_(torch.maximum(self.largest, x.max()))
            return out

    with pytest.raises(CompileError, match=r"writes to 'largest' what it computes from its input.*earlier calls"):
        fastgen.Sampler(Keeps(), (6,), heads.Categorical(LEVELS, to_input="unit"), order="time", predicts="next")


def test_a_write_that_never_settles_is_refused_though_no_call_shows_it():
    class Drifts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, LEVELS, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.conv(x[:, None])
            self.conv.weight.data *= 1 - 1e-7
            return out

    with pytest.raises(CompileError, match=r"'conv.weight'.*every call changes it further"):
        fastgen.Sampler(Drifts(), (6,), heads.Categorical(LEVELS, to_input="unit"), order="time", predicts="next")


def test_random_numbers_of_another_library_are_refused():
    import random

    class Draws(nn.Conv1d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x[:, None]) * random.random()

    with pytest.raises(CompileError, match="draws random numbers that are not PyTorch's"):
        fastgen.Sampler(
            Draws(1, LEVELS, 1), (6,), heads.Categorical(LEVELS, to_input="unit"), order="time", predicts="next"
        )


def test_a_write_within_a_call_that_is_undone_is_followed():
    """A weight that is doubled, used and halved again: nothing remains, but the output is of the doubled one."""

    class Doubles(nn.Conv1d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.weight.data *= 2
            out = super().forward(x[:, None])
            self.weight.data /= 2
            return out

    torch.manual_seed(0)
    module = Doubles(1, LEVELS, 1)
    sampler = fastgen.Sampler(module, (40,), HEAD, order="time", predicts="next", machine=FAST)
    assert torch.equal(sampler.sample(3), sampler.sample_naive(3))
    plain = nn.Sequential(nn.Unflatten(1, (1, 40)), copy.deepcopy(module)).eval()
    with torch.no_grad():
        assert torch.equal(plain[1](torch.ones(2, 40)), module(torch.ones(2, 40)))
