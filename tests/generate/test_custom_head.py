"""A head of the user's own: both machines call its functions once a step, and what they do wrong is said."""

from __future__ import annotations

import copy
import itertools
import pickle
import threading
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen.generate import heads
from fastgen.generate.noise import Noise, uniform
from tests.generate.compiled import MACHINES
from tests.generate.head_cases import (
    CUSTOM,
    geometric_draw,
    geometric_log_prob,
    joint,
    logistic_draw,
    logistic_log_prob,
)
from tests.generate.teacher import EPSILON, in_double
from tests.generate.test_draws import probability_of_chance
from tests.generate.test_interrupts import interrupted

STEPS = 24
DISCRETE = CUSTOM["custom-discrete"][0]
THREADS = [(machine, threads) for machine in MACHINES for threads in ((1, 2, 3) if machine == "cpu" else (1,))]


class Net(nn.Module):
    """Two steps back, through a tanh."""

    def __init__(self, channels: int, parameters: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(channels, 16, 2), nn.Conv1d(16, parameters, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(nn.functional.pad(torch.tanh(x), (1, 0)))))


@cache
def network(channels: int, parameters: int) -> Net:
    torch.manual_seed(0)
    return Net(channels, parameters)


def made(head: heads.Custom, machine: str = MACHINES[-1], threads: int = 1) -> fastgen.Sampler:
    module = network(head.channels, head.parameters_per_position)
    shape = (head.channels, STEPS)
    return fastgen.Sampler(module, shape, head, "time", predicts="next", machine=machine, threads=threads)


def head_of(draw=logistic_draw, log_prob=logistic_log_prob, **options) -> heads.Custom:
    return heads.Custom(draw, log_prob, **{"parameters_per_position": 2, "channels": 2} | options)


def plain_log_prob(parameters: Tensor, values: Tensor) -> Tensor:
    return logistic_log_prob(parameters, values)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_discrete_one_is_the_textbook_loop_s(machine):
    sampler = made(DISCRETE, machine)
    drawn, log_prob = sampler.sample(6, seed=1, return_log_prob=True)
    naive, naive_log_prob = sampler.sample_naive(6, seed=1, return_log_prob=True)
    assert drawn.dtype == torch.int64
    assert len(drawn.unique()) == 7
    assert torch.equal(drawn, naive)
    torch.testing.assert_close(log_prob.float(), naive_log_prob.float())
    torch.testing.assert_close(sampler.log_prob(drawn), log_prob.float())


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("machine", MACHINES)
def test_a_continuous_one_is_the_textbook_loop_s(machine, temperature):
    """It errs as the module's own float32 does, eight-fold, since the two ways re-associate otherwise."""
    sampler = made(head_of(), machine)
    scored = {"return_log_prob": True, "return_proposal_log_prob": True, "temperature": temperature}
    found, single = sampler.sample(6, seed=1, **scored), sampler.sample_naive(6, seed=1, **scored)
    for ours, theirs, exact in zip(found, single, in_double(sampler).sample_naive(6, seed=1, **scored), strict=True):
        error = (theirs - exact).abs().max() + EPSILON * exact.abs().max()
        assert (ours - exact).abs().max() <= 8 * error
    assert torch.equal(found[1], found[2]) == (temperature == 1)


def test_frequencies_are_the_probabilities():
    batch, parameters = 20_000, torch.tensor([[0.4]])
    drawn = DISCRETE.draw(parameters.expand(batch, 1, 1), Noise(1, torch.arange(batch), 5))
    counts = torch.bincount(drawn.levels.long().flatten(), minlength=7).double()
    probabilities = joint(DISCRETE, parameters.double(), 1)
    assert abs(probabilities.sum() - 1) < 1e-12
    assert probability_of_chance(counts, probabilities) > 1e-6


@pytest.mark.parametrize(("machine", "threads"), THREADS)
def test_draw_is_called_once_a_step_by_the_caller_with_the_sampler_s_noise(machine, threads):
    calls = []

    def draw(parameters: Tensor, noise: Tensor, temperature: float) -> Tensor:
        calls.append((parameters.clone(), noise.clone(), temperature, threading.get_ident()))
        return logistic_draw(parameters, noise[:, :2], temperature)

    sampler = made(head_of(draw, noise_per_position=3), machine, threads)
    assert calls == []  # compiling and the check that follows it call nothing
    sampler.sample(13, seed=5, temperature=0.5)
    assert len(calls) == STEPS
    for position, (parameters, noise, temperature, thread) in enumerate(calls):
        assert parameters.shape == (13, 2)
        assert parameters.dtype == noise.dtype == torch.float64
        assert torch.equal(noise, torch.stack([uniform(5, torch.arange(13), position, 0, i) for i in range(3)], 1))
        assert (temperature, thread) == (0.5, threading.get_ident())


@pytest.mark.parametrize("machine", MACHINES)
def test_log_prob_is_called_only_where_it_is_wanted(machine):
    calls = []

    def log_prob(parameters: Tensor, values: Tensor) -> Tensor:
        calls.append(values)
        return logistic_log_prob(parameters, values)

    sampler = made(head_of(log_prob=log_prob), machine)
    drawn = sampler.sample(2, seed=1, temperature=0.7)
    assert calls == []
    sampler.sample(2, seed=1, return_log_prob=True)
    assert len(calls) == STEPS
    sampler.sample(2, known=drawn, known_mask=drawn == drawn, return_log_prob=True)
    assert len(calls) == 2 * STEPS


@pytest.mark.parametrize("head", [head_of(), DISCRETE], ids=str)
def test_bitwise_the_same_for_any_batch_and_number_of_threads(head):
    sampler = made(head)
    whole, log_prob = sampler.sample(17, seed=3, threads=1, return_log_prob=True)
    for n, threads in itertools.product((1, 2, 17), (1, 2, 4)):
        drawn, scored = sampler.sample(n, seed=3, threads=threads, return_log_prob=True)
        assert torch.equal(drawn, whole[:n])
        assert torch.equal(scored, log_prob[:n])


@pytest.mark.parametrize(("machine", "threads"), THREADS)
def test_an_exception_reaches_the_caller_as_it_is(machine, threads):
    raised, calls = KeyError("of the user's own"), itertools.count()

    def draw(parameters: Tensor, noise: Tensor, temperature: float) -> Tensor:
        if next(calls) == 7:
            raise raised
        return logistic_draw(parameters, noise, temperature)

    sampler = made(head_of(draw), machine, threads)
    state = sampler.start(9, seed=2)
    with pytest.raises(KeyError) as found:
        sampler.advance(state, STEPS)
    assert found.value is raised
    with pytest.raises(RuntimeError, match="an exception left it within the step"):
        sampler.advance(state, 1)
    assert torch.equal(sampler.sample(9, seed=2), made(head_of(), machine, threads).sample(9, seed=2))


@pytest.mark.parametrize(("machine", "threads"), THREADS)
def test_draw_may_use_another_sampler_but_not_the_one_that_calls_it(machine, threads):
    other = made(DISCRETE, machine)
    expected, found = other.sample(2, seed=9), []

    def draw(parameters: Tensor, noise: Tensor, temperature: float) -> Tensor:
        found.append(other.sample(2, seed=9))
        return logistic_draw(parameters, noise, temperature)

    made(head_of(draw), machine, threads).sample(3)
    assert len(found) == STEPS
    assert all(torch.equal(drawn, expected) for drawn in found)
    if machine == "cpu":
        own = []

        def again(parameters: Tensor, noise: Tensor, temperature: float) -> Tensor:
            return own[0].sample(1)

        own.append(made(head_of(again), machine, threads))
        with pytest.raises(RuntimeError, match="cannot be used from within its own work"):
            own[0].sample(3)


@pytest.mark.parametrize("machine", MACHINES)
def test_what_closes_over_parameters_leaves_no_graph(machine):
    scale = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def draw(parameters: Tensor, noise: Tensor, temperature: float) -> Tensor:
        return parameters + scale * temperature * torch.logit(noise)

    def log_prob(parameters: Tensor, values: Tensor) -> Tensor:
        return logistic_log_prob(parameters / scale, values / scale) - 2 * torch.log(scale)

    sampler = made(head_of(draw, log_prob), machine)
    drawn, scored = sampler.sample(2, return_log_prob=True)
    assert not drawn.requires_grad
    assert not scored.requires_grad
    parameters = torch.randn(2, 2, STEPS, dtype=torch.float64, requires_grad=True)
    sampler.head.log_prob(parameters, drawn).sum().backward()
    assert scale.grad.isfinite()
    assert parameters.grad.isfinite().all()


@pytest.mark.needs_extension
@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupt_ends_the_call_after_a_step(threads):
    """Until the end of the step the functions are called though a handler has raised.

    A signal that meets the functions themselves ends the call within the step, and the state is lost; another try.
    """
    steps, width, batch = 4000, 384, 48
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv1d(2, width, 1), nn.Tanh(), nn.Conv1d(width, width, 1), nn.Tanh(), nn.Conv1d(width, 2, 1)
    )
    sampler = fastgen.Sampler(
        module, (2, steps), head_of(), "time", predicts="next", machine="cpu", threads=threads, verify=False
    )
    for _ in range(10):
        state = sampler.start(batch, seed=2)
        with interrupted(0.1):
            sampler.advance(state, steps)
        if not state.run.unfinished:
            break
    assert not state.run.unfinished
    reached = state.step
    assert 0 < reached < steps
    whole = sampler.advance(sampler.start(batch, seed=2), reached + 3)
    assert torch.equal(sampler.advance(state, 3).levels, whole.levels)


# ---- known elements


@pytest.mark.parametrize("machine", MACHINES)
def test_known_positions_are_kept_and_scored(machine):
    sampler = made(head_of(), machine)
    known = torch.randn(3, 2, STEPS)
    mask = (torch.rand(3, 1, STEPS) < 0.5).expand(3, 2, STEPS)
    options = {"known": known, "known_mask": mask, "return_log_prob": True, "return_proposal_log_prob": True}
    drawn, log_prob, proposal = sampler.sample(3, seed=4, **options)
    assert torch.equal(drawn[mask], known[mask])
    again, scored, nothing = sampler.sample(
        3, seed=8, known=drawn, known_mask=drawn == drawn, return_log_prob=True, return_proposal_log_prob=True
    )
    assert torch.equal(again, drawn)
    assert torch.equal(scored, log_prob)
    assert (nothing == 0).all()
    assert (proposal != log_prob).all()


def test_channels_of_a_position_are_known_all_or_none():
    sampler = made(head_of())
    mask = torch.zeros(1, 2, STEPS, dtype=torch.bool)
    mask[:, 1, 3] = True
    for use in (sampler.sample, sampler.sample_naive, sampler.start):
        with pytest.raises(ValueError, match="known_mask must be the same for all channels of a position"):
            use(2, known=torch.zeros(1, 2, STEPS), known_mask=mask)


# ---- states, streams, files, copies


@pytest.mark.parametrize("machine", MACHINES)
def test_streams_forks_and_files_of_states_go_on_alike(machine, tmp_path):
    sampler = made(head_of(), machine)
    whole = sampler.sample(2, seed=6)
    assert torch.equal(torch.cat(list(sampler.stream(2, steps=STEPS, chunk=7, seed=6)), -1), whole)
    state = sampler.advance(sampler.start(2, seed=6), 10)
    state.save(tmp_path / "state")
    fork = state.fork([1, 0], same_noise=True)
    for other, expected in ((sampler.load_state(tmp_path / "state"), whole), (fork, whole.flip(0)), (state, whole)):
        assert torch.equal(sampler.advance(other, STEPS).levels, expected)


@pytest.mark.parametrize("head", [head_of(), DISCRETE, head_of(geometric_draw, geometric_log_prob, channels=1,
                                  parameters_per_position=1, levels=7, noise_per_position=6)], ids=str)  # fmt: skip
def test_a_file_takes_the_head_again(head, tmp_path):
    sampler = made(head)
    sampler.save(tmp_path / "sampler")
    loaded = fastgen.Sampler.load(tmp_path / "sampler", head=head)
    assert torch.equal(loaded.sample(3, seed=2), sampler.sample(3, seed=2))
    state = sampler.advance(sampler.start(3, seed=2), 5)
    state.save(tmp_path / "state")
    assert torch.equal(loaded.advance(loaded.load_state(tmp_path / "state"), STEPS).levels, sampler.sample(3, seed=2))


def test_a_file_with_another_head_is_refused(tmp_path):
    made(head_of()).save(tmp_path / "custom")
    for head, message in (
        (None, "head must be the Custom head that the sampler was made with: a file holds no functions"),
        (heads.Gaussian(), r"head must be a Custom head, got Gaussian\("),
        (
            head_of(noise_per_position=5),
            "head must be the Custom head of the file, .*_position': 2.*, got .* 5",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            fastgen.Sampler.load(tmp_path / "custom", head=head)
    fastgen.Sampler(network(1, 2), (1, STEPS), heads.Gaussian(), "time", predicts="next").save(tmp_path / "gaussian")
    with pytest.raises(ValueError, match="head must be None where the file holds the head"):
        fastgen.Sampler.load(tmp_path / "gaussian", head=head_of())


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_and_pickles_keep_functions_of_a_module(copied):
    sampler = made(head_of())
    assert torch.equal(copied(sampler).sample(2, seed=1), sampler.sample(2, seed=1))


def test_functions_that_cannot_be_pickled_say_so():
    sampler = made(head_of(lambda parameters, noise, temperature: parameters))
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        pickle.dumps(sampler)


# ---- what is refused

WRONG_RESULTS = [
    (lambda p, u, t: p[:, :1], r"draw must return values \[3, 2\], got \[3, 1\]"),
    (lambda p, u, t: 3, r"draw must return values \[3, 2\], got int"),
    (lambda p, u, t: p * torch.nan, r"draw must return values that are finite, got nan at position 0"),
    (lambda p, u, t: p * 0 + 1e300, r"draw must return values that are finite, got inf at position 0"),
]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("draw", "message"), WRONG_RESULTS, ids=[message for _, message in WRONG_RESULTS])
def test_wrong_values_are_refused(draw, message, machine):
    sampler = made(head_of(draw), machine)
    with pytest.raises(ValueError, match=message):
        sampler.sample(3)
    with pytest.raises(ValueError, match=message):
        sampler.sample_naive(3)


@pytest.mark.parametrize("machine", MACHINES)
def test_wrong_levels_and_wrong_scores_are_refused(machine):
    options = {"parameters_per_position": 1, "channels": 1, "levels": 7}
    for value in (0.5, 7.0, -1.0):
        sampler = made(heads.Custom(lambda p, u, t, v=value: p * 0 + v, geometric_log_prob, **options), machine)
        with pytest.raises(ValueError, match=rf"values that are whole numbers in 0 \.\. 6, got {value} at position 0"):
            sampler.sample(2)
    sampler = made(head_of(log_prob=lambda parameters, values: values), machine)
    with pytest.raises(ValueError, match=r"log_prob must return log-probabilities \[3\], got \[3, 2\]"):
        sampler.sample(3, return_log_prob=True)


def test_proposals_at_other_temperatures_need_a_log_prob_that_takes_them():
    sampler, wanted = made(head_of(log_prob=plain_log_prob)), {"return_proposal_log_prob": True}
    _, proposal = sampler.sample(2, seed=1, **wanted)
    assert torch.equal(proposal, sampler.sample(2, seed=1, return_log_prob=True)[1])
    sampler.sample(2, temperature=0.5, return_log_prob=True)
    for use in (sampler.sample, sampler.sample_naive):
        with pytest.raises(ValueError, match=r"temperature must be 1 for log-prob.* takes temperature, got 0.5"):
            use(2, temperature=0.5, **wanted)


WRONG = [
    ({"draw": 3}, "draw must be a function, got 3"),
    ({"log_prob": None}, "log_prob must be a function, got None"),
    ({"channels": 0}, "channels must be an integer, 1 or more.*, got 0"),
    ({"parameters_per_position": 0.5}, "parameters_per_position must be .*, got 0.5"),
    ({"levels": 1}, "levels must be an integer, 2 or more.*, got 1"),
    ({"noise_per_position": 65537}, r"noise_per_position must be an integer in 1 \.\. 65536, got 65537"),
    ({"to_input": "unit"}, "to_input must be None for a continuous head, got 'unit'"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[message for _, message in WRONG])
def test_errors_name_the_argument(options, message):
    with pytest.raises(ValueError, match=message):
        head_of(**options)


def test_an_event_has_the_channels_of_the_head():
    with pytest.raises(ValueError, match=r"event_shape must have 2 channels for Custom\(.*\), got \(3, 24\)"):
        fastgen.Sampler(network(3, 2), (3, STEPS), head_of(), "time")


@pytest.mark.needs_extension
def test_cpp_does_not_draw_it():
    from fastgen import _C

    arrays = torch.zeros(1, 2).numpy(), 0, torch.zeros(1).long().numpy(), 0, 0, None, torch.zeros(1, 2).numpy()
    with pytest.raises(ValueError, match="a custom head draws in Python, at position 0"):
        _C.draw(head_of().spec(), *arrays)
