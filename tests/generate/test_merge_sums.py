"""Sums of contractions: which become one contraction, and that none changes what is sampled."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from fastgen.generate import heads
from tests.generate.compiled import FAST
from tests.generate.seeded import built

LEVELS = 5


class Skips(nn.Module):
    """A gated stack whose output is the sum of a skip convolution of every layer."""

    def __init__(self, layers: int = 4, look_at_sum: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 6, 1)
        self.gates = nn.ModuleList(nn.Conv1d(6, 6, 2, dilation=2**i) for i in range(layers))
        width = 6 if look_at_sum else 9
        self.skips = nn.ModuleList(nn.Conv1d(6, width, 1, bias=i % 2 == 0) for i in range(layers))
        self.last = nn.Conv1d(width, LEVELS, 1)
        self.look_at_sum = look_at_sum

    def forward(self, x: Tensor) -> Tensor:
        h, total = self.first(F.pad(x, (1, -1))), 0
        for gate, skip in zip(self.gates, self.skips, strict=True):
            z = torch.tanh(gate(F.pad(h, (gate.dilation[0], 0))))
            total, h = total + skip(z), h + z
            if self.look_at_sum:
                h = h + total
        return self.last(F.relu(total))


class Upsampled(nn.Module):
    """A 1 x 1 convolution at half the rate, repeated and added to one at the full rate."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high, self.down = nn.Conv1d(4, 7, 1), nn.Conv1d(4, 7, 2), nn.Conv1d(1, 4, 2, stride=2)
        self.first, self.last = nn.Conv1d(1, 4, 1), nn.Conv1d(7, LEVELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(torch.tanh(self.down(F.pad(x, (2, -2))))).repeat_interleave(2, 2)
        return self.last(torch.tanh(low + self.high(F.pad(self.first(x), (2, -1)))))


def sampler(module: nn.Module, length: int = 24) -> fastgen.Sampler:
    head = heads.Categorical(LEVELS, to_input="unit")
    return fastgen.Sampler(module, (1, length), head, "time", threads=1, machine=FAST)


def inputs_of_instructions(made: fastgen.Sampler) -> list[int]:
    program = made.program
    bodies = [instruction.body for instruction in program.computes]
    return [sum(s.length for s in program.segments[body.segment0 : body.segment1]) for body in bodies]


NETWORKS = {
    "skips": Skips,
    "skips, each sum read": lambda: Skips(look_at_sum=True),
    "upsampled": Upsampled,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_and_scores_are_those_of_the_module(name: str) -> None:
    made = sampler(built(NETWORKS[name]))
    x, log_prob = made.sample(5, seed=1, return_log_prob=True)
    assert torch.equal(x, made.sample_naive(5, seed=1))
    torch.testing.assert_close(log_prob.float(), made.log_prob(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [2, 4])
def test_all_skips_are_one_contraction(layers: int) -> None:
    made = sampler(built(lambda: Skips(layers)))
    assert 6 * layers in inputs_of_instructions(made)
    assert len(made.program.computes) == 3 + layers  # first, the gates, the skips, last


def test_a_sum_with_another_reader_is_computed_by_itself() -> None:
    made = sampler(built(lambda: Skips(4, look_at_sum=True)))
    assert 6 * 4 not in inputs_of_instructions(made)


def test_a_repeated_contraction_is_not_repeated() -> None:
    """Two outputs share one low-rate product; merged, each would compute it."""
    assert 4 + 8 not in inputs_of_instructions(sampler(built(Upsampled)))


def test_refresh_fills_a_merged_contraction_again() -> None:
    made = sampler(built(Skips))
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.add_(torch.linspace(-0.3, 0.2, parameter.numel()).reshape(parameter.shape))
    made.refresh()
    fresh = sampler(made.module)
    assert torch.equal(made.program.weights, fresh.program.weights)
    assert torch.equal(made.program.constants, fresh.program.constants)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(1, 12, 1), nn.Conv1d(12, LEVELS, 1)
        self.groups = nn.Conv1d(12, 12, 2, groups=3)
        nn.init.ones_(self.groups.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.groups(F.pad(self.first(F.pad(x, (1, -1))), (1, 0)))))


def test_groups_that_are_equal_now_keep_weights_of_their_own() -> None:
    made = sampler(Grouped().eval())
    with torch.no_grad():
        made.module.groups.weight.copy_(torch.randn(made.module.groups.weight.shape, generator=torch.Generator()))
    made.refresh()
    assert torch.equal(made.sample(5, seed=1), made.sample_naive(5, seed=1))
