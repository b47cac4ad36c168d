"""Recurrent networks: programs that do not grow with the length, scans, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen.generate import CompileError
from fastgen.generate.compile.lengths import calls_of, departure
from fastgen.generate.compile.pipeline import analyse
from fastgen.generate.ir.program import STREAM
from tests.generate.compiled import CASES, FAST, case, sampler
from tests.generate.public_recurrent import LEVELS, Tokens
from tests.generate.seeded import built

NAMES = [
    "char_lstm", "gru_sequence_first", "relu_rnn", "cells", "own_cell", "sequence_first_loop", "averages",
    "linear_attention", "retention", "rwkv", "mamba",
]  # fmt: skip
HEAD = fastgen.heads.Categorical(LEVELS)


def test_every_recurrent_network_is_a_case():
    assert set(NAMES) <= set(CASES)


LONG = ("mamba", "rwkv", "cells")
"""Networks whose unrolled loops take long to export."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in NAMES])
def test_the_program_does_not_grow_with_the_length(name):
    programs = [analyse(sampler(name).request.at(n), None).lowered.program for n in (13, 21)]
    for table in ("instructions", "operands", "operations", "segments", "weight_table", "buffers"):
        assert len(getattr(programs[0], table)) == len(getattr(programs[1], table)), table
    assert any(instruction.loop for instruction in programs[0].instructions)
    assert len(programs[0].weights) == len(programs[1].weights)


def test_the_program_does_not_grow_with_the_image():
    programs = [case("row_lstm").sampler(event_shape=shape).program for shape in ((1, 6, 5), (1, 9, 8))]
    assert len(programs[0].instructions) == len(programs[1].instructions)
    assert len(programs[0].weights) == len(programs[1].weights)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_that_is_the_same_at_any_length_has_no_end(name):
    endless = sampler(name).program.steps >= STREAM // 2
    assert endless == (name != "averages"), sampler(name).compiled.ends  # which divides by the number of steps


def test_a_stream_beyond_the_event_is_the_longer_event():
    compiled = sampler("char_lstm")
    longer = case("char_lstm").sampler(event_shape=(70,))
    chunks = torch.cat(list(compiled.stream(batch=2, steps=70, chunk=9, seed=3)), -1)
    assert torch.equal(chunks, longer.sample(2, seed=3))
    assert torch.equal(chunks, longer.sample_naive(2, seed=3))


class Cumulative(nn.Module):
    def __init__(self, operator) -> None:
        super().__init__()
        self.operator, self.norm = operator, nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.operator(torch.tanh(x)))


CUMULATIVE = {
    "cumsum": lambda x: x.cumsum(1),
    "cumsum of halves": lambda x: x.unflatten(2, (2, 4)).cumsum(1).flatten(2),
    "cumsum, sequence first": lambda x: x.transpose(0, 1).cumsum(0).transpose(0, 1),
    "cumsum, channels first": lambda x: x.transpose(1, 2).cumsum(-1).transpose(1, 2),
    "cumprod": lambda x: (1 + x / 8).cumprod(1),
    "logcumsumexp": lambda x: torch.logcumsumexp(x, 1),
    "cummax": lambda x: x.cummax(1).values,
    "cummin": lambda x: x.cummin(1).values,
    "where the least is": lambda x: x + x.cummin(1).indices % 3,
}


@pytest.mark.parametrize("name", CUMULATIVE)
def test_cumulative_operators_over_positions(name):
    network = built(lambda: Tokens(Cumulative(CUMULATIVE[name])))
    compiled = fastgen.Sampler(network, (18,), HEAD, order="time", predicts="next", machine=FAST, threads=1)
    drawn = compiled.sample(3, seed=1)
    assert torch.equal(drawn, compiled.sample_naive(3, seed=1))
    known = torch.ones_like(drawn, dtype=torch.bool)
    known[:, 13:] = False
    assert torch.equal(compiled.sample(3, seed=1, known=drawn, known_mask=known), drawn)


class Layers(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 4, batch_first=True, **options)
        self.state = 4

    def forward(self, x: Tensor) -> Tensor:
        states = torch.zeros(1, x.shape[0], self.state), torch.zeros(1, x.shape[0], self.state)
        y = self.lstm(x, None if self.lstm.bidirectional else states)[0]
        return x + nn.functional.pad(y, (0, 8 - y.shape[2]))


def test_a_bidirectional_layer_is_refused_by_name():
    with pytest.raises(CompileError, match=r"a bidirectional recurrence over the event.*network\.lstm"):
        fastgen.Sampler(built(lambda: Tokens(Layers(bidirectional=True))), (12,), HEAD, order="time", predicts="next")


def test_a_state_of_the_wrong_shape_is_refused_before_any_work():
    network = built(lambda: Tokens(Layers()))
    network.network.state = 5
    with pytest.raises(CompileError, match=re.escape("Expected hidden[0] size (1, 2, 4), got [1, 2, 5]")):
        fastgen.Sampler(network, (12,), HEAD, order="time", predicts="next")


def looped(change) -> nn.Module:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.other = nn.Linear(16, 8), nn.Linear(16, 8)

        def forward(self, x: Tensor, context) -> Tensor:
            h, states = torch.zeros(x.shape[0], 8), []
            for t in range(x.shape[1]):
                h = change(self, x, t, h)
                states.append(h)
            return torch.stack(states, 1)

    return Network().eval()


def step(net, x, t, h):
    return torch.tanh(net.cell(torch.cat([x[:, t], h], 1)))


@pytest.mark.parametrize(
    ("change", "departs"),
    [
        (step, False),
        (lambda net, x, t, h: step(net, x, max(t - 2, 0), h), False),
        (lambda net, x, t, h: step(net, x, t, h) + x[:, 0], False),
        (lambda net, x, t, h: step(net, x, x.shape[1] - 1 - t, h), False),
        (lambda net, x, t, h: torch.tanh((net.other if t > 100 else net.cell)(torch.cat([x[:, t], h], 1))), True),
        (lambda net, x, t, h: step(net, x, t // 2, h), True),
        (lambda net, x, t, h: step(net, x, t, h) / (t + 1.5), True),
        (lambda net, x, t, h: step(net, x, t, h) + torch.eye(8)[t % 8], True),
        (lambda net, x, t, h: step(net, x, t, h) + (x[:, 90] if t > 90 else 0), True),
    ],
)
def test_departure_of_a_loop(change, departs):
    network, steps = looped(change), 64
    known = calls_of(network, (torch.zeros(2, steps, 8), None))
    assert known.any
    assert bool(departure(network, known, (torch.zeros(2, steps + 3 * 16, 8), None), 3)) == departs


class Started(nn.Module):
    """Some start tokens before the event: the first states depend on no input, and on the parameters."""

    def __init__(self, kind: str, tokens: int) -> None:
        super().__init__()
        self.kind, self.tokens, self.embed, self.out = kind, tokens, nn.Embedding(LEVELS, 8), nn.Linear(8, LEVELS)
        self.lstm, self.cell = nn.LSTM(8, 8, batch_first=True), nn.GRUCell(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        inputs = self.embed(nn.functional.pad(x, (self.tokens, 0)))
        if self.kind == "loop":
            h, states = torch.zeros(x.shape[0], 8), []
            for t in range(inputs.shape[1]):
                h = self.cell(inputs[:, t], h)
                states.append(h)
            y = torch.stack(states, 1)
        else:
            y = self.lstm(inputs)[0] if self.kind == "layer" else torch.tanh(inputs.cumsum(1))
        return self.out(y[:, self.tokens - 1 : -1]).transpose(1, 2)


@pytest.mark.parametrize("kind", ["layer", "sum", "loop"])
@pytest.mark.parametrize("tokens", [1, 4])
def test_states_before_the_first_step(kind, tokens):
    network = built(lambda: Started(kind, tokens))
    compiled = fastgen.Sampler(network, (14,), HEAD, order="time", machine=FAST, threads=1)
    drawn = compiled.sample(3, seed=0)
    assert torch.equal(drawn, compiled.sample_naive(3, seed=0))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.7)
    compiled.refresh()
    again = compiled.sample(3, seed=0)
    assert torch.equal(again, compiled.sample_naive(3, seed=0))
    assert not torch.equal(again, drawn)
