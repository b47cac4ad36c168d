"""A composite head draws and scores what its parts do, channel by channel."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import fastgen
from fastgen.generate import heads
from fastgen.generate.noise import Noise
from tests.generate.compiled import MACHINES, case, sampler
from tests.generate.head_cases import HEADS, Mixture, random_levels, shape_of
from tests.generate.teacher import EPSILON, in_double

COMPOSITES = ["composite-pen", "composite-many"]


@pytest.mark.parametrize("name", COMPOSITES)
def test_its_log_prob_is_the_sum_of_the_parts(name):
    head, channels = HEADS[name]
    output, levels = (
        torch.randn(4, head.parameters_per_group, 5, dtype=torch.float64),
        random_levels(head, 4, channels, 5),
    )
    total = torch.zeros(4, dtype=torch.float64)
    for part, own, run in head.runs():
        values = levels[:, own]
        total += part.log_prob(output[:, run], values.long() if part.levels else values)
    torch.testing.assert_close(head.log_prob(output, levels), total, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("known_share", [0.0, 0.5])
@pytest.mark.parametrize("name", COMPOSITES)
def test_it_draws_what_each_part_alone_draws(name, known_share):
    head, channels = HEADS[name]
    batch, parameters = 9, torch.randn(9, *shape_of(head, channels))
    levels, known = random_levels(head, batch, channels), torch.rand(batch, channels) < known_share
    noise = Noise(3, torch.arange(batch), 17, 2)
    whole = head.draw(parameters, noise, levels, known, temperature=0.8)
    log_prob = proposal = torch.zeros(batch, dtype=torch.float64)
    for part, own, run in head.runs():
        alone = Noise(3, torch.arange(batch), 17, 2 + own.start)
        drawn = part.draw(parameters[..., run], alone, levels[:, own], known[:, own], temperature=0.8)
        assert torch.equal(whole.levels[:, own], drawn.levels)
        assert torch.equal(whole.inputs[:, own], drawn.inputs)
        log_prob, proposal = log_prob + drawn.log_prob, proposal + drawn.proposal_log_prob
    torch.testing.assert_close(whole.log_prob, log_prob, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(whole.proposal_log_prob, proposal, rtol=1e-13, atol=1e-13)


def test_top_k_and_top_p_alter_the_categorical_parts():
    head = heads.Composite(heads.Categorical(5), heads.Gaussian(), heads.Categorical(4))
    parameters, noise = torch.randn(20, 1, 11), Noise(0, torch.arange(20), 0)
    free, greedy = head.draw(parameters, noise), head.draw(parameters, noise, top_k=1)
    assert torch.equal(greedy.levels[:, 0], parameters[:, 0, :5].argmax(-1).float())
    assert torch.equal(greedy.levels[:, 2], parameters[:, 0, 7:].argmax(-1).float())
    assert torch.equal(greedy.levels[:, 1], free.levels[:, 1])
    with pytest.raises(ValueError, match=r"top_k must be an integer in 0 \(off\) .. 4, got 5"):
        head.check_sampling(1.0, top_k=5)
    with pytest.raises(ValueError, match="only a Categorical head"):
        heads.Composite(heads.Bernoulli(), heads.Gaussian()).check_sampling(1.0, top_p=0.5)


PEN = heads.Composite(heads.BivariateGaussianMixture(2), heads.Bernoulli("symmetric"))


def test_samples_are_floats_that_the_network_reads_part_by_part():
    levels = torch.tensor([[[0.5], [-2.0], [1.0]], [[0.25], [3.0], [0.0]]])
    assert PEN.to_input(levels).flatten(1).tolist() == [[0.5, -2.0, 1.0], [0.25, 3.0, -1.0]]
    drawn = sampler("strokes").sample(6, seed=4)
    assert drawn.dtype == torch.float32
    assert set(drawn[:, 2].unique().tolist()) == {0.0, 1.0}


WRONG = [
    (lambda: heads.Composite(heads.Gaussian()), "parts must be two heads or more, got 1"),
    (lambda: heads.Composite(heads.Gaussian(), PEN), r"parts must be heads other than Composite and Custom, got Comp"),
    (lambda: heads.Composite(heads.Gaussian(), 3), "parts must be heads other than Composite and Custom, got 3"),
    (lambda: heads.Composite(heads.Gaussian(), Mixture(2)), "parts must say how many channels they draw, got Disc"),
    (
        lambda: heads.Composite(heads.Gaussian(), Mixture(2, 9, channels=1, feed_raw=True)),
        "parts must have feed_raw=False, got Disc",
    ),
    (lambda: PEN.groups((2, 8)), r"event_shape must have 3 channels for Composite\(.*\), got \(2, 8\)"),
    (lambda: PEN.groups((6, 8)), r"event_shape must have 3 channels for Composite\(.*\), got \(6, 8\)"),
    (lambda: PEN.check_levels(torch.zeros(1, 3, 2).long(), "known"), "known has dtype torch.int64"),
    (lambda: PEN.check_levels(torch.zeros(1, 2, 2)), r"levels must have shape \[N, 3, \*positions\], got \[1, 2, 2\]"),
    (
        lambda: PEN.check_levels(torch.full((1, 3, 2), 0.5), "known"),
        r"known must be whole numbers in 0 .. 1 in channel 2 \(Bernoulli\(\)\), got 0.5",
    ),
    (
        lambda: heads.from_config({"kind": "composite", "parts": [{"kind": "composite", "parts": []}] * 2}),
        "parts must be of the kinds bernoulli, ",
    ),
    (lambda: heads.from_config({"kind": "composite", "parts": [{"kind": []}] * 2}), "parts must be of the kinds"),
    (lambda: heads.from_config({"kind": "composite"}), "a composite head's config must have a list of parts"),
    (
        lambda: PEN.draw(
            torch.zeros(1, 1, 13), Noise(0, torch.arange(1), 4), torch.full((1, 3), 0.5), torch.ones(1, 3) > 0
        ),
        r"known level at position 4 is no whole number in 0 \.\. 1",
    ),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message for _, message in WRONG])
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_it_draws_all_channels_of_a_position_at_once():
    head = heads.Composite(heads.Bernoulli("unit"), heads.Gaussian())
    with pytest.raises(fastgen.generate.CompileError, match="draws all channels of a position at once"):
        fastgen.Sampler(nn.Conv2d(2, 3, 1), (2, 3, 3), head, order="raster-subpixel")


@pytest.mark.parametrize("machine", MACHINES)
def test_strokes_are_the_textbook_loop_s(machine):
    """The pen's states are the same; the rest errs as the module's own float32 does, eight-fold, since the two ways
    re-associate otherwise and 40 steps carry it on."""
    compiled, n = sampler("strokes", machine), 8
    scored = {"return_log_prob": True, "return_proposal_log_prob": True, "temperature": 0.8}
    found, single = compiled.sample(n, seed=2, **scored), compiled.sample_naive(n, seed=2, **scored)
    assert torch.equal(found[0][:, 2], single[0][:, 2])
    for ours, theirs, exact in zip(found, single, in_double(compiled).sample_naive(n, seed=2, **scored), strict=True):
        error = (theirs - exact).abs().max() + EPSILON * exact.abs().max()
        assert (ours - exact).abs().max() <= 8 * error


@pytest.mark.parametrize("pattern", list(itertools.product([False, True], repeat=3)), ids=str)
def test_known_channels_are_kept_whichever_they_are(pattern):
    compiled, known = sampler("strokes"), case("strokes").levels(2, seed=5)
    mask = torch.tensor(pattern)[None, :, None].expand(known.shape)
    drawn = compiled.sample(2, seed=6, known=known, known_mask=mask)
    assert torch.equal(drawn[mask], known[mask])
    for machine in MACHINES:
        other = sampler("strokes", machine).sample(2, seed=6, known=known, known_mask=mask)
        assert torch.equal(other[:, 2], drawn[:, 2])


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ["gaussian", "strokes"])
def test_known_values_are_finite(name, machine):
    compiled, known = sampler(name, machine), case(name).levels(1)
    known[0, 0, 0] = torch.inf
    everything = torch.ones_like(known, dtype=torch.bool)
    for use in (compiled.sample, compiled.sample_naive):
        with pytest.raises(ValueError, match=r"known must be finite .*where known_mask is True, got inf"):
            use(1, known=known, known_mask=everything)


def test_what_is_not_known_may_be_nan():
    compiled, known = sampler("gaussian"), case("gaussian").levels(1)
    mask = torch.rand(known.shape) < 0.5
    drawn = compiled.sample(1, known=known.masked_fill(~mask, torch.nan), known_mask=mask)
    assert torch.equal(drawn, compiled.sample(1, known=known, known_mask=mask))


@pytest.mark.parametrize("machine", MACHINES)
def test_a_prompt_that_is_not_finite_is_refused_though_nothing_is_scored(machine):
    prompt = case("strokes").levels(1)[..., :6]
    prompt[0, 1, 3] = torch.nan
    with pytest.raises(ValueError, match=r"a known (level|value) .*position 3"):
        sampler("strokes", machine).stream(1, steps=4, prompt=prompt)


def test_a_stream_is_the_sample_in_chunks():
    compiled = sampler("strokes")
    chunks = list(itertools.islice(compiled.stream(2, chunk=16, seed=3), 3))
    assert torch.equal(torch.cat(chunks, -1)[..., :40], compiled.sample(2, seed=3))


def test_a_state_with_half_a_level_is_refused(tmp_path):
    compiled = sampler("strokes")
    state = compiled.advance(compiled.start(2), 5)
    state.run.levels[0, 2, 1] = 0.5
    state.save(tmp_path / "state")
    with pytest.raises(
        ValueError, match=r"levels must be finite in channels 0 \.\. 1, whole numbers in 0 \.\. 1 in channel 2"
    ):
        compiled.load_state(tmp_path / "state")


def test_explain_says_what_each_part_feeds():
    told = str(sampler("strokes").explain())
    assert "in channels 0 .. 1 values as they are; in channel 2 levels as floats 0 .. 1" in told
