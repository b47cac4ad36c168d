"""A signal's handler that raises, as Ctrl-C does, stops a generation; the state says where it stands, and goes on."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import fastgen
from tests.generate.small_networks import pointwise

pytestmark = pytest.mark.needs_extension

LONG = 3_000_000
"""Steps that take a second and more."""


class Stop(Exception):
    """Raised by the handler."""


@contextlib.contextmanager
def interrupted(after: float, act=None) -> Iterator[None]:
    """The block is ended by a signal, which `act` or an exception answers."""

    def handle(*_):
        if act is None:
            raise Stop
        act()

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        with pytest.raises(Stop) if act is None else contextlib.nullcontext():
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def long_sampler(threads: int) -> fastgen.Sampler:
    return pointwise(LONG, threads=threads)


@pytest.mark.parametrize(("threads", "batch"), [(1, 1), (2, 1), (1, 5)])
def test_advance_stops_after_a_step_and_goes_on(threads, batch):
    """faults/robustness_ctrl_c: the whole call was run to its end, and thrown away."""
    sampler = long_sampler(threads)
    state = sampler.start(batch, seed=2, log_prob=True)
    with interrupted(0.05):
        sampler.advance(state, LONG)
    assert 0 < state.step < LONG
    reached = state.step
    with interrupted(0.05):
        sampler.advance(state, LONG)
    assert reached < state.step < LONG
    end = state.step + 100
    whole = sampler.start(batch, seed=2, log_prob=True)
    sampler.advance(whole, end)
    sampler.advance(state, 100)
    assert state.step == end
    assert torch.equal(state.levels, whole.levels)
    assert torch.equal(state.run.log_prob, whole.run.log_prob)
    assert torch.equal(state.run.state, whole.run.state)


@pytest.fixture
def ctrl_c_interrupts():
    """As in a terminal: a shell's background jobs ignore SIGINT, and so does Python in one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_keyboard_interrupt_ends_sample_and_stream(ctrl_c_interrupts):
    sampler = long_sampler(1)

    def press() -> None:
        signal.raise_signal(signal.SIGINT)

    for use in (lambda: sampler.sample(1), lambda: next(sampler.stream(1, chunk=LONG))):
        with pytest.raises(KeyboardInterrupt), interrupted(0.05, press):
            use()
    assert sampler.start(1).step == 0


def test_a_long_prompt_is_left():
    sampler = long_sampler(1)
    levels = torch.arange(LONG)[None] % 16
    given = {"known": levels, "known_mask": torch.ones_like(levels, dtype=torch.bool), "log_prob": True}
    state, after = sampler.start(1, **given), 0.01
    while not state.step:  # the signal came before the first step was read
        after *= 1.5
        with interrupted(after):
            sampler.advance(state, LONG)
    reached = state.step
    assert reached < LONG
    sampler.advance(state, 1000)
    whole = sampler.advance(sampler.start(1, **given), reached + 1000)
    assert torch.equal(state.run.log_prob, whole.run.log_prob)
    assert torch.equal(state.run.state, whole.run.state)


class Wide(nn.Module):
    """A second or so a step, in a batch of 2048."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(2, 4096), nn.Conv1d(4096, 4096, 1), nn.Conv1d(4096, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.inner(self.embed(x).transpose(1, 2))))


def test_a_step_that_takes_long_is_broken_off_and_the_state_says_so(tmp_path):
    sampler = fastgen.Sampler(
        Wide().eval(), (4,), fastgen.heads.Categorical(2), order="time", predicts="next", threads=1
    )
    for threads in (1, 2):
        state = sampler.start(2048, threads=threads)
        with interrupted(0.1):
            sampler.advance(state, 4)
        assert state.step < 4
        assert state.run.unfinished
        for use in (
            lambda state: sampler.advance(state, 1),
            lambda state: state.fork([0]),
            lambda state: state.save(tmp_path / "state"),
        ):
            with pytest.raises(RuntimeError, match=f"cannot go on from step {state.step}: .* left it within the step"):
                use(state)
    assert torch.equal(sampler.sample(2, seed=1), sampler.sample_naive(2, seed=1))


def test_a_handler_that_returns_stops_nothing():
    sampler, calls = long_sampler(1), itertools.count()
    state = sampler.start(1)
    with interrupted(0.05, lambda: next(calls)):
        sampler.advance(state, LONG // 2)
    assert next(calls) == 1
    assert state.step == LONG // 2


def test_a_handler_cannot_use_the_sampler_that_it_interrupts():
    """It would wait for itself."""
    sampler = long_sampler(1)
    state = sampler.start(1)
    with (
        pytest.raises(RuntimeError, match="cannot be used from within its own work, by a signal handler"),
        interrupted(0.05, lambda: sampler.sample(1)),
    ):
        sampler.advance(state, LONG)
    other = pointwise()
    expected, found = other.sample(2), []
    state = sampler.start(1)
    with interrupted(0.05, lambda: found.append(other.sample(2))):
        sampler.advance(state, LONG // 4)
    assert torch.equal(found[0], expected)
    assert state.step == LONG // 4


def test_the_reference_machine_says_that_it_was_interrupted():
    sampler = pointwise(LONG, machine="reference")
    state = sampler.start(1)
    with interrupted(0.05):
        sampler.advance(state, LONG)
    assert 0 < state.step < LONG
    if state.run.unfinished:
        with pytest.raises(RuntimeError, match=f"cannot go on from step {state.step}"):
            sampler.advance(state, 1)
