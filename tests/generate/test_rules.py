"""Operators one by one: behind a causal convolution, the sampler scores and draws what the module does."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from fastgen.generate import heads
from tests.generate.compiled import FAST
from tests.generate.seeded import built

CHANNELS = 6
STEPS = 14
HEAD = heads.Categorical(5, to_input="symmetric")


def assigned(h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    out[:, 1:] = h[:, :-1] * 2
    return out


OPERATORS = {
    "remainder": lambda h: h % 0.7,
    "remainder of a negative": lambda h: h % -0.7,
    "fmod": lambda h: torch.fmod(h, 0.7),
    "addcmul": lambda h: torch.addcmul(h, h, torch.tanh(h), value=0.5),
    "addcdiv": lambda h: torch.addcdiv(h, h, torch.exp(h), value=0.5),
    "lerp": lambda h: torch.lerp(h, torch.tanh(h), 0.3),
    "addcmul of constants": lambda h: torch.addcmul(h, h.new_ones(CHANNELS, 1), h.new_full((1, 1), 0.3)),
    "logaddexp": lambda h: torch.logaddexp(h, 2 * h),
    "log2": lambda h: torch.log2(h.abs() + 1),
    "log10": lambda h: torch.log10(h.abs() + 1),
    "exp2": torch.exp2,
    "and": lambda h: ((h > 0) & (h < 1)) * h,
    "or": lambda h: ((h > 1) | (h < -1)) * h,
    "xor": lambda h: torch.logical_xor(h > 1, h < 2) * h,
    "not": lambda h: ~(h > 0) * h,
    "truth": lambda h: (h * (h > 0)).bool() * (h - 2),
    "maximum": lambda h: torch.max(h, -h / 2),
    "rrelu": F.rrelu,
    "threshold": lambda h: F.threshold(h, 0.1, 2.0),
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "assignment": assigned,
    "dropout of nothing": lambda h: F.dropout(h, 0.0),
}


class Behind(nn.Module):
    def __init__(self, operator) -> None:
        super().__init__()
        self.operator = operator
        self.conv = nn.Conv1d(1, CHANNELS, 2)
        self.output = nn.Conv1d(CHANNELS, HEAD.levels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.operator(self.conv(F.pad(x[:, None], (2, -1)))))


def scored(module: nn.Module, head=HEAD, steps: int = STEPS) -> fastgen.Sampler:
    """A sampler, once its scores are those of the module in float64 and its samples those of the textbook loop."""
    compiled = fastgen.Sampler(module, event_shape=(steps,), head=head, order="time", machine=FAST)
    levels = torch.randint(0, head.levels, (6, steps), generator=torch.Generator().manual_seed(0))
    _, log_prob = compiled.sample(6, known=levels, known_mask=levels == levels, return_log_prob=True)
    inputs = head.to_input(levels)
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(inputs.double() if inputs.is_floating_point() else inputs)
    torch.testing.assert_close(log_prob, head.log_prob(exact, levels), rtol=1e-5, atol=1e-5)
    assert torch.equal(compiled.sample(3, seed=1), compiled.sample_naive(3, seed=1))
    return compiled


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_computes_what_pytorch_computes(name):
    scored(built(lambda: Behind(OPERATORS[name]), gain=3.0))


class Shuffled(Behind):
    """A convolution of groups, whose channels alternate behind it, as in ShuffleNet."""

    def __init__(self) -> None:
        super().__init__(lambda h: h)
        self.grouped = nn.Conv1d(9, 9, 1, groups=3)
        self.conv, self.output = nn.Conv1d(1, 9, 2), nn.Conv1d(9, HEAD.levels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(F.pad(x[:, None], (2, -1)))
        return self.output(h + F.silu(F.channel_shuffle(self.grouped(h), 3)))


def test_channels_of_groups_may_alternate():
    scored(built(Shuffled, gain=3.0))


class Tables(nn.Module):
    """Coarse and fine digits of a token, each looked up in a table by indexing."""

    def __init__(self, select: bool) -> None:
        super().__init__()
        self.select = select
        self.coarse = nn.Parameter(torch.randn(4, 5))
        self.fine = nn.Parameter(torch.randn(5))
        self.output = nn.Conv1d(7, 20, 2)

    def forward(self, x: Tensor) -> Tensor:
        coarse, fine = torch.div(x, 5, rounding_mode="floor"), x % 5
        wide = torch.index_select(self.coarse, 0, coarse.flatten()).view(*x.shape, -1) if self.select else None
        h = torch.cat(
            [self.coarse[coarse] if wide is None else wide, self.fine[fine][..., None], x.bool()[..., None]], -1
        )
        return self.output(F.pad(h.transpose(1, 2), (2, -1)))


@pytest.mark.parametrize("select", [False, True])
def test_a_table_is_read_by_indexing(select):
    module = built(lambda: Tables(select))
    compiled = scored(module, heads.Categorical(20))
    with torch.no_grad():
        module.fine.mul_(-1)
    assert torch.equal(compiled.refresh().sample(3, seed=1), compiled.sample_naive(3, seed=1))
