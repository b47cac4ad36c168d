"""The program of a long sequence holds for what reaches far, however the network is written."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from fastgen.generate import heads
from fastgen.generate.compile.any_length import STREAM
from tests.generate.compiled import FAST
from tests.generate.seeded import built

HEAD = heads.Categorical(5)


class Far(nn.Module):
    """What is read of the past is not in any layer's attributes."""

    def __init__(self, width: int, past) -> None:
        super().__init__()
        self.embed = nn.Embedding(HEAD.levels, 6)
        self.weight = nn.Parameter(torch.randn(6, 6, 2) / 4)
        self.output = nn.Conv1d(6 * width, HEAD.levels, 1)
        self.past = past

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.past(self.embed(F.pad(x, (1, -1))).transpose(1, 2), self.weight))


def shifted(h: Tensor, lag: int) -> Tensor:
    return F.pad(h, (lag, 0))[..., : h.shape[-1]]


def after_zeros(h: Tensor, lag: int) -> Tensor:
    return torch.cat([h.new_zeros(*h.shape[:-1], lag), h], -1)[..., : h.shape[-1]]


def dilated(h: Tensor, weight: Tensor) -> Tensor:
    return h + F.conv1d(F.pad(h, (150, 0)), weight, dilation=150)


def lags(h: Tensor, weight: Tensor) -> Tensor:
    found = [h]
    for _ in range(5):
        found.append(shifted(found[-1], 60))
    return torch.cat(found, 1)


def at_half_the_rate(h: Tensor, weight: Tensor) -> Tensor:
    slow = F.pad(h, (1, h.shape[-1] % 2))[..., ::2][..., : -(-h.shape[-1] // 2)]
    return torch.cat([h, shifted(slow, 90).repeat_interleave(2, -1)[..., : h.shape[-1]]], 1)


PASTS = {
    "padded and cut": (2, lambda h, weight: torch.cat([h, shifted(h, 150)], 1)),
    "after zeros": (2, lambda h, weight: torch.cat([h, after_zeros(h, 150)], 1)),
    "functional dilation": (1, dilated),
    "lags of lags": (6, lags),
    "two regimes": (1, lambda h, weight: torch.cat([h[..., :150], torch.tanh(2 * h[..., 150:])], -1)),
    "half the rate": (2, at_half_the_rate),
}


@pytest.mark.parametrize("name", PASTS)
def test_what_reaches_far_is_found(name):
    module = built(lambda: Far(*PASTS[name]))
    compiled = fastgen.Sampler(module, event_shape=(1200,), head=HEAD, order="time", machine=FAST)
    levels = torch.randint(0, HEAD.levels, (1, 1200), generator=torch.Generator().manual_seed(0))
    _, log_prob = compiled.sample(1, known=levels, known_mask=levels == levels, return_log_prob=True)
    torch.testing.assert_close(log_prob.float(), compiled.log_prob(levels), rtol=1e-5, atol=0)


def test_channels_of_zeros_do_not_hinder_a_program_of_any_length():
    module = built(lambda: Far(2, lambda h, weight: torch.cat([h + shifted(h, 7), torch.zeros_like(h)], 1)))
    compiled = fastgen.Sampler(module, event_shape=(1200,), head=HEAD, order="time", machine=FAST)
    assert compiled.program.steps > STREAM // 2
