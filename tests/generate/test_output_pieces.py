"""Outputs that are padded, joined or stacked of several tensors compile as they are (faults generation_12 and 23)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from fastgen.generate import heads
from tests.generate.compiled import FAST
from tests.generate.seeded import built

LEVELS = 12


class Tokens(nn.Module):
    """Logits of the element before, ``[N, LEVELS, T]``; what follows them is the case's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out, self.other = nn.Embedding(LEVELS, 8), nn.Linear(8, LEVELS), nn.Linear(8, LEVELS)
        self.first = nn.Parameter(torch.randn(LEVELS))

    def logits(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embed(x))).transpose(1, 2)


class Shifted(Tokens):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.logits(x), (1, 0))[..., :-1]


class FirstLogits(Tokens):
    def forward(self, x: Tensor) -> Tensor:
        first = self.first[None, :, None].expand(len(x), -1, 1)
        return torch.cat([first, self.logits(x)[..., :-1]], -1)


class Loop(Tokens):
    def forward(self, x: Tensor) -> Tensor:
        h, logits = torch.zeros(x.shape[0], 8), []
        for t in range(x.shape[1]):
            logits.append(self.out(h))
            h = torch.tanh(self.embed(x[:, t]) + 0.5 * h)
        return torch.stack(logits, 2)


class InTurn(Tokens):
    """Two heads: even positions have one, odd positions the other."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.pad(torch.tanh(self.embed(x)), (0, 0, 1, -1))
        return torch.stack([self.out(h[:, ::2]), self.other(h[:, 1::2])], 2).flatten(1, 2).transpose(1, 2)


class Halves(Tokens):
    """The first half of the sequence has one head, the second the other."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.pad(torch.tanh(self.embed(x)), (0, 0, 1, -1))
        half = x.shape[1] // 2
        return torch.cat([self.out(h[:, :half]), self.other(h[:, half:])], 1).transpose(1, 2)


class PositionsFirst(Tokens):
    """``[T, N, d]``, what nn.GRU takes by default: the first cells are made of constants and belong to no sample."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(F.pad(x, (1, 0))[:, :-1]).transpose(0, 1)
        state, states = torch.zeros(x.shape[0], 8), []
        for step in h:
            state = torch.tanh(step + 0.5 * state)
            states.append(state)
        return self.out(torch.stack(states)).permute(1, 2, 0)


class TwoChannels(nn.Module):
    """``[N, 2, T]`` levels; the channels' logits come from two layers, one of them padded."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv1d(2, LEVELS, 2), nn.Conv1d(2, LEVELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(F.pad(x, (2, -1))), F.pad(self.right(x), (1, -1))], 1)


class FirstRow(nn.Module):
    """An image whose first row has logits of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first = nn.Conv2d(1, LEVELS, (1, 3)), nn.Parameter(torch.randn(LEVELS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.conv(F.pad(x[:, :, :-1], (1, 1)))
        return torch.cat([self.first.expand(len(x), -1, 1, x.shape[3]), rows], 2)


SEQUENCES = [Shifted, FirstLogits, Loop, InTurn, Halves, PositionsFirst]


def exact(compiled: fastgen.Sampler) -> None:
    drawn, log_prob = compiled.sample(3, seed=1, return_log_prob=True)
    assert torch.equal(drawn, compiled.sample_naive(3, seed=1))
    assert torch.allclose(log_prob.float(), compiled.log_prob(drawn), rtol=1e-5, atol=0)


@pytest.mark.parametrize("order", ["time", "permutation"])
@pytest.mark.parametrize("network", SEQUENCES)
def test_an_output_in_pieces_is_exact(network, order):
    """Faults generation_12_output_in_pieces and generation_23_sequence_first_constants."""
    given = "time" if order == "time" else list(range(8))
    exact(fastgen.Sampler(built(network), (8,), heads.Categorical(LEVELS), given, machine=FAST))


@pytest.mark.parametrize("network", [Shifted, FirstLogits, InTurn])
def test_an_output_in_pieces_has_a_program_of_any_length(network):
    compiled = fastgen.Sampler(built(network), (3000,), heads.Categorical(LEVELS), "time", machine=FAST)
    assert compiled.program.steps > 3000
    exact_start = fastgen.Sampler(compiled.module, (40,), heads.Categorical(LEVELS), "time", machine=FAST)
    assert torch.equal(compiled.sample(2, seed=5)[:, :40], exact_start.sample_naive(2, seed=5))


def test_channels_from_several_tensors_are_exact():
    head = heads.Categorical(LEVELS, to_input="unit")
    exact(fastgen.Sampler(built(TwoChannels), (2, 14), head, "time", machine=FAST))


@pytest.mark.parametrize("order", ["raster", list(range(20))])
def test_an_image_whose_first_row_is_constant_is_exact(order):
    head = heads.Categorical(LEVELS, to_input="unit")
    exact(fastgen.Sampler(built(FirstRow), (1, 4, 5), head, order, machine=FAST))
