"""Sequences whose channels are drawn one after the other, at every step of time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen.generate import heads
from fastgen.generate.errors import NotCausalError
from fastgen.generate.ir.program import STREAM
from fastgen.generate.ir.program_checks import FAR
from fastgen.generate.orders import make_order
from tests.generate.compiled import case, sampler
from tests.generate.seeded import built


def test_every_step_draws_the_next_channel_and_after_the_last_one_the_next_position():
    order = make_order("time-channels", (3, 5))
    channels, positions = np.unravel_index(np.argsort(order.steps, axis=None), order.steps.shape)
    assert order.length == 15
    assert np.array_equal(channels, np.arange(15) % 3)
    assert np.array_equal(positions, np.arange(15) // 3)


@pytest.mark.parametrize("chunk", [1, 4, 9])
def test_a_stream_of_any_length_is_the_sample_with_its_prompt_known(chunk):
    compiled, steps, given = sampler("wavernn"), 9, 5
    assert compiled.program.steps >= STREAM
    prompt = case("wavernn").levels(2)[..., :given]
    chunks = list(compiled.stream(2, steps, chunk, seed=3, prompt=prompt))
    assert all(part.shape[:2] == (2, 2) for part in chunks)
    assert [part.shape[2] for part in chunks] == [min(chunk, steps - n) for n in range(0, steps, chunk)]
    known = torch.zeros(2, 2, 14, dtype=torch.int64)
    known[..., :given] = prompt
    mask = torch.zeros(2, 2, 14, dtype=torch.bool)
    mask[..., :given] = True
    assert torch.equal(torch.cat(chunks, 2), compiled.sample(2, seed=3, known=known, known_mask=mask)[..., given:])


def test_a_step_of_time_may_know_some_channels_only():
    compiled = sampler("wavernn")
    known, mask = case("wavernn").levels(3), torch.zeros(3, 2, 14, dtype=torch.bool)
    mask[:, 0] = True
    drawn = compiled.sample(3, seed=1, known=known, known_mask=mask)
    assert torch.equal(drawn[:, 0], known[:, 0])
    assert torch.equal(drawn, compiled.sample_naive(3, seed=1, known=known, known_mask=mask))


class Triangle(nn.Module):
    """Every channel reads those before it, and all of the step before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.here, self.before = (nn.Parameter(torch.randn(channels, channels)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        before = nn.functional.pad(x, (1, -1))
        return torch.einsum("ij,njt->nit", self.here.tril(-1), x) + torch.einsum("ij,njt->nit", self.before, before)


def test_a_program_of_many_channels_has_no_end_and_no_step_beyond_the_last_there_may_be():
    compiled = fastgen.Sampler(built(lambda: Triangle(33), 1.0), (33, 6), heads.Bernoulli(), "time-channels")
    assert STREAM <= compiled.program.steps < FAR
    assert torch.equal(compiled.sample(2, seed=0), compiled.sample_naive(2, seed=0))
    assert torch.equal(torch.cat(list(compiled.stream(2, 6, 4, seed=0)), 2), compiled.sample(2, seed=0))


def test_a_network_whose_channels_follow_one_another_is_told_of_the_order():
    with pytest.raises(NotCausalError, match='pass order="time-channels"'):
        fastgen.Sampler(case("wavernn").module, (2, 14), case("wavernn").head, "time")


def test_a_head_that_draws_the_channels_together_is_refused():
    head = heads.Composite(heads.Gaussian(), heads.Bernoulli())
    with pytest.raises(fastgen.generate.CompileError, match="order 'time-channels' draws one channel a step"):
        fastgen.Sampler(nn.Conv1d(2, 3, 1), (2, 9), head, "time-channels")


def test_an_image_is_no_sequence():
    with pytest.raises(ValueError, match=r"order 'time-channels' needs event_shape \(T,\), \(C, T\) or \(D,\), got"):
        make_order("time-channels", (2, 4, 4))
