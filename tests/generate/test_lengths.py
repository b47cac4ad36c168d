"""Sequences: a program without an end where the network is the same at any length, else one of the event's length."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen.generate.compile import any_length as compiling
from fastgen.generate.compile.lengths import calls_of, departure
from fastgen.generate.heads import Categorical
from tests.generate.seeded import built

LEVELS = 12


class Network(nn.Module):
    """Embedding, a change that a test asks for, a linear map."""

    def __init__(self, change=None) -> None:
        super().__init__()
        self.embed, self.other, self.out = nn.Embedding(LEVELS, 8), nn.Embedding(LEVELS, 8), nn.Linear(8, LEVELS)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) if self.change is None else self.change(self, x)
        return self.out(3 * torch.tanh(h)).transpose(1, 2)


def switch(net, x):
    return torch.where((torch.arange(x.shape[1]) >= 250)[:, None], net.other(x), net.embed(x))


def branch(net, x):
    return net.embed(x) * (2 if x.shape[1] > 250 else 1)


def global_token(net, x):
    h = net.embed(x)
    if x.shape[1] > 250:
        h = h + h[:, 250:251] * (torch.arange(x.shape[1]) >= 250)[:, None]
    return h


def tail(net, x):
    return torch.cat([net.embed(x[:, :-100]), net.other(x[:, -100:])], 1)


def start(net, x):
    return torch.where((torch.arange(x.shape[1]) >= 20)[:, None], net.other(x), net.embed(x))


def shift(net, x):
    return net.embed(x) + nn.functional.pad(net.other(x), (0, 0, 3, 0))[:, : x.shape[1]]


def positions(net, x):
    return net.embed(x) + net.other.weight[:12].repeat(10, 1)[: x.shape[1]]


def sampler(change, steps: int) -> fastgen.Sampler:
    return fastgen.Sampler(built(lambda: Network(change)), (steps,), Categorical(LEVELS), "time", predicts="next")


@pytest.mark.parametrize("change", [switch, branch, global_token, tail])
def test_what_short_lengths_do_not_show_is_compiled_at_the_full_length(change):
    """generation_01, generation_03."""
    compiled = sampler(change, 300)
    assert compiled.program.steps == 300
    assert torch.equal(compiled.sample(1, seed=0), compiled.sample_naive(1, seed=0))


@pytest.mark.parametrize("steps", [16, 64, 200])
@pytest.mark.parametrize("change", [None, start, shift])
def test_a_stream_goes_past_the_event_whatever_its_length(change, steps):
    """reports_stream_short_event."""
    compiled = sampler(change, steps)
    chunks = compiled.stream(batch=1, chunk=150, seed=0)
    got = torch.cat([next(chunks) for _ in range(3)], 1)
    assert torch.equal(got, sampler(change, 450).sample_naive(1, seed=0))
    assert torch.equal(compiled.sample(1, seed=0), got[:, :steps])


def test_a_stream_that_must_end_says_so_before_it_starts():
    compiled = sampler(positions, 100)
    with pytest.raises(ValueError, match=r"steps must be 1 .. 100 for this network; .*, got None"):
        compiled.stream(batch=1)
    assert sum(chunk.shape[1] for chunk in compiled.stream(batch=1, steps=100, chunk=30)) == 100


def test_an_event_too_long_to_be_analysed_is_refused_with_the_line_that_departs(monkeypatch):
    monkeypatch.setattr(compiling, "_LONGEST", 200)
    with pytest.raises(ValueError, match=r"no program of any length.*test_lengths.py"):
        sampler(switch, 300)


def test_an_internal_error_is_no_reason_to_try_another_length(monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(compiling, "extrapolate", broken)
    monkeypatch.setattr(compiling, "analyse", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        sampler(None, 300)


@pytest.mark.parametrize(
    ("change", "departs"),
    [
        (None, False), (start, False), (shift, False), (switch, True), (branch, True), (global_token, True),
        (lambda net, x: net.embed(x) * (1 + (torch.arange(x.shape[1]) % 4)[:, None]), False),
        (lambda net, x: net.embed(x) * (1 + (torch.arange(x.shape[1]) % 200)[:, None]), True),
        (lambda net, x: net.embed(x) / x.shape[1] ** 0.5, True),
        (lambda net, x: net.embed(x) + net.other(x[:, :1]) * (x.shape[1] - 500 > 0), True),
    ],
)  # fmt: skip
def test_departure(change, departs):
    def inputs(steps):
        return torch.zeros(2, steps, dtype=torch.long), None

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = Network(change)

        def forward(self, x, context):
            return self.network(x)

    net = Alone().eval()
    assert bool(departure(net, calls_of(net, inputs(128)), inputs(128 + 64 * 101), 101)) == departs
