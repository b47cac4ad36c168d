"""The laws of draws: they follow the probabilities, and C++ draws what Python draws."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgen.generate import heads
from fastgen.generate.heads.base import inverse_cdf
from fastgen.generate.heads.categorical import truncate
from fastgen.generate.noise import Noise
from tests.generate.head_cases import COMPILED, DISCRETE, HEADS, Mixture, joint, shape_of


def probability_of_chance(counts: Tensor, probabilities: Tensor) -> float:
    """Pearson's chi-square test: how often chance alone is as far from the probabilities. Rare cells are pooled."""
    total = counts.sum()
    expected = probabilities * total
    rare = expected < 5
    if rare.any():
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    assert counts[expected == 0].sum() == 0
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2.0).double(), statistic / 2))


ALTERED = [{}, {"temperature": 0.6}, {"temperature": 1.8}]
TRUNCATED = [{"top_k": 3}, {"top_p": 0.7}, {"top_k": 4, "top_p": 0.5, "temperature": 2.0}]
DRAWS = [(name, options) for name in DISCRETE for options in ALTERED] + [("categorical", o) for o in TRUNCATED]


@pytest.mark.parametrize(("name", "options"), DRAWS, ids=str)
def test_frequencies_are_the_proposals(name, options):
    head, channels = DISCRETE[name]
    parameters, batch = torch.randn(*shape_of(head, channels)), 20_000
    drawn = head.draw(parameters.expand(batch, -1, -1), Noise(1, torch.arange(batch), 5), **options)
    cell = drawn.levels.long() @ (head.levels ** torch.arange(channels - 1, -1, -1))
    counts = torch.bincount(cell, minlength=head.levels**channels).double()
    probabilities = torch.zeros_like(counts)
    probabilities[cell] = drawn.proposal_log_prob.exp()
    if not options:
        torch.testing.assert_close(probabilities[cell], joint(head, parameters.double(), channels).flatten()[cell])
    assert 1 - 1e-3 < probabilities.sum() < 1 + 1e-12
    assert probability_of_chance(counts, probabilities) > 1e-6


@pytest.mark.parametrize("pattern", list(itertools.product([False, True], repeat=3))[:-1], ids=str)
def test_coupled_channels_are_drawn_given_the_earlier_ones(pattern):
    """Of known and drawn channels alike, and never of later ones; by enumeration of the joint distribution."""
    head, channels = Mixture(3, 4), 3
    parameters, batch = torch.randn(*shape_of(head, channels)), 20_000
    parameters[:, 3:] *= 2
    table = joint(head, parameters.double(), channels)
    given_levels, known = torch.tensor([1.0, 3.0, 0.0]), torch.tensor(pattern)
    conditional = [
        table.sum((1, 2)) / table.sum(),
        table.sum(2) / table.sum((1, 2))[:, None],
        table / table.sum(2)[..., None],
    ]
    for channel in range(channels):
        if known[channel]:
            point = torch.zeros(head.levels, dtype=torch.float64)
            point[int(given_levels[channel])] = 1
            conditional[channel] = point.expand_as(conditional[channel])
    probabilities = conditional[0][:, None, None] * conditional[1][..., None] * conditional[2]
    drawn = head.draw(
        parameters.expand(batch, -1, -1),
        Noise(2, torch.arange(batch), 5),
        given_levels.expand(batch, -1),
        known.expand(batch, -1),
    )
    assert (drawn.levels[:, known] == given_levels[known]).all()
    cell = tuple(drawn.levels.long().T)
    counts = torch.zeros_like(probabilities).index_put(cell, torch.ones(batch).double(), accumulate=True)
    assert probability_of_chance(counts.flatten(), probabilities.flatten()) > 1e-6
    torch.testing.assert_close(drawn.proposal_log_prob.exp(), probabilities[cell])
    torch.testing.assert_close(drawn.log_prob.exp(), table[cell])


def assert_uniform(cdf: Tensor) -> None:
    """Kolmogorov-Smirnov, at a distance that chance exceeds once in 10^6."""
    n = len(cdf)
    ideal = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    assert (cdf.double().sort().values - ideal).abs().max() + 0.5 / n < math.sqrt(math.log(2e6) / (2 * n))


@pytest.mark.parametrize("head", [heads.Gaussian(2), heads.LogisticMixture(2)], ids=str)
def test_continuous_draws_follow_the_density(head):
    n, temperature = 20_000, 0.7
    parameters = torch.tensor([[0.3, -0.2, -1.0, 2.0, 0.5, -0.4]])
    drawn = head.draw(parameters.expand(n, 1, 6), Noise(3, torch.arange(n), 0), temperature=temperature)
    logits, means, log_scales = parameters.double()[0].split(2)
    standard = (drawn.levels.double() - means) / (log_scales.exp() * temperature)
    cdf = torch.special.ndtr(standard) if head.kind == "gaussian" else torch.sigmoid(standard)
    assert_uniform(cdf @ torch.softmax(logits / temperature, 0))


def weights_of(logits: Tensor, temperature: float) -> Tensor:
    return torch.softmax(logits / temperature, 0)


@pytest.mark.parametrize("known_x", [False, True])
def test_bivariate_draws_follow_the_density(known_x):
    """By Rosenblatt's transform: the cdf of x, and that of y given x, are uniform and independent."""
    head, n, temperature = heads.BivariateGaussianMixture(2), 20_000, 0.7
    parameters = torch.tensor([0.3, -0.2, -1.0, 2.0, 0.5, -2.0, 0.5, -0.4, 0.1, 0.8, 1.2, -0.6])
    levels, known = torch.full((n, 2), 0.7), torch.tensor([[known_x, False]]).expand(n, 2)
    drawn = head.draw(parameters.expand(n, 1, 12), Noise(3, torch.arange(n), 0), levels, known, temperature=temperature)
    logits, mean_x, mean_y, log_x, log_y, r = parameters.double().split(2)
    x, y = drawn.levels.double()[:, :, None].unbind(1)
    at_x = (x - mean_x) / (log_x.exp() * temperature)
    joint_weights = weights_of(logits, temperature) * torch.exp(-0.5 * at_x**2) / log_x.exp()
    given_x = joint_weights / joint_weights.sum(-1, keepdim=True)
    shifted = (y - mean_y) / (log_y.exp() * temperature) - torch.tanh(r) * at_x
    cdf_y = (given_x * torch.special.ndtr(shifted * torch.cosh(r))).sum(-1)
    assert_uniform(cdf_y)
    if known_x:
        assert (drawn.levels[:, 0] == levels[:, 0]).all()
        return
    cdf_x = torch.special.ndtr(at_x) @ weights_of(logits, temperature)
    assert_uniform(cdf_x)
    cells = (cdf_x * 10).long() * 10 + (cdf_y * 10).long()
    counts = torch.bincount(cells, minlength=100).double()
    assert probability_of_chance(counts, torch.full((100,), 0.01, dtype=torch.float64)) > 1e-6


def test_a_known_y_changes_no_draw_of_x():
    head, n = heads.BivariateGaussianMixture(3), 50
    parameters, noise = torch.randn(n, 1, 18), Noise(3, torch.arange(n), 0)
    free = head.draw(parameters, noise)
    known = torch.tensor([[False, True]]).expand(n, 2)
    kept = head.draw(parameters, noise, torch.full((n, 2), 0.3), known)
    assert torch.equal(kept.levels[:, 0], free.levels[:, 0])
    assert (kept.levels[:, 1] == torch.tensor(0.3)).all()
    pairs = torch.stack([kept.levels[:, 0], kept.levels[:, 1]], -1)
    marginal = heads.Gaussian(3).log_prob(parameters[:, 0, [0, 1, 2, 3, 4, 5, 9, 10, 11], None].double(), pairs[:, :1])
    torch.testing.assert_close(kept.proposal_log_prob, marginal)


@pytest.mark.parametrize("name", HEADS)
def test_scores_of_a_draw_are_the_heads_log_prob(name):
    head, channels = HEADS[name]
    groups, count = shape_of(head, channels)
    output = torch.randn(16, groups * count, 1, 1) * 3
    parameters = head.arrange(output, (channels, 1, 1))[:, 0]
    for temperature in (1.0, 0.5):
        drawn = head.draw(parameters, Noise(4, torch.arange(16), 3), temperature=temperature)
        levels = drawn.levels.reshape(16, channels, 1, 1)
        levels = levels.long() if head.levels else levels
        if head.feed_raw:
            assert drawn.log_prob.isnan().all()
            assert ((drawn.inputs + 1) / 2 * (head.levels - 1)).round().equal(drawn.levels)
            assert drawn.inputs.abs().max() <= 1
            continue
        torch.testing.assert_close(drawn.log_prob, head.log_prob(output.double(), levels))
        assert torch.equal(drawn.inputs.reshape(levels.shape), head.to_input(levels).float())
        if temperature == 1:
            torch.testing.assert_close(drawn.proposal_log_prob, drawn.log_prob)


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=9), st.data())
def test_truncation_by_definition(logits, data):
    levels = len(logits)
    top_k, top_p = data.draw(st.integers(0, levels)), data.draw(st.sampled_from([0.01, 0.3, 0.55, 0.9, 0.999, 1.0]))
    weights = [math.exp(x - max(logits)) for x in logits]
    ranked = sorted(range(levels), key=lambda i: (-logits[i], i))[: top_k or levels]
    total, kept = sum(weights[i] for i in ranked), set()
    while ranked and (not kept or sum(weights[i] for i in kept) < top_p * total or top_p == 1):
        kept.add(ranked.pop(0))
    tensor = torch.tensor(logits, dtype=torch.float64)
    result = truncate(torch.exp(tensor - tensor.max()), tensor, top_k, top_p)
    assert set(result.nonzero().flatten().tolist()) == kept


@given(
    st.lists(st.sampled_from([0.0, 1e-300, 0.1, 0.25, 1.0]), min_size=1, max_size=6), st.floats(0, 1, exclude_max=True)
)
def test_inverse_cdf_by_definition(weights, uniform):
    if sum(weights) == 0:
        weights[0] = 1.0
    index = int(inverse_cdf(torch.tensor(weights, dtype=torch.float64), torch.tensor(uniform, dtype=torch.float64)))
    cumulated = list(itertools.accumulate(weights))
    first = next((i for i, c in enumerate(cumulated) if c > uniform * cumulated[-1]), None)
    last = max(i for i, w in enumerate(weights) if w > 0)
    assert index == (last if first is None else first)
    assert weights[index] > 0


def test_minus_infinity_is_never_drawn():
    parameters = torch.randn(500, 1, 8)
    parameters[..., ::2] = -torch.inf
    drawn = heads.Categorical(8).draw(parameters, Noise(0, torch.arange(500), 0), temperature=5.0)
    assert (drawn.levels % 2 == 1).all()
    assert drawn.log_prob.isfinite().all()


@pytest.mark.parametrize("name", HEADS)
def test_nan_is_an_error_with_its_position(name):
    head, channels = HEADS[name]
    groups, count = shape_of(head, channels)
    parameters = torch.randn(3, groups, count)
    parameters[1, groups - 1, 0] = torch.nan
    with pytest.raises(ValueError, match="output at position 17 is NaN"):
        head.draw(parameters, Noise(0, torch.arange(3), 17))


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
@pytest.mark.parametrize("head", [heads.Categorical(4), Mixture(3), heads.Gaussian(3)], ids=str)
def test_infinite_logits_are_an_error(head, value):
    parameters = torch.zeros(1, *shape_of(head, 1))
    parameters[..., : 4 if head.levels == 4 else 3] = value
    with pytest.raises(ValueError, match="position 2 makes no distribution"):
        head.draw(parameters, Noise(0, torch.arange(1), 2))


def test_known_levels_are_checked():
    noise, known = Noise(0, torch.arange(1), 6), torch.ones(1, 1, dtype=torch.bool)
    for level in (-1.0, 0.5, 4.0, math.nan):
        with pytest.raises(ValueError, match=r"known level at position 6 is no whole number in 0 \.\. 3"):
            heads.Categorical(4).draw(torch.zeros(1, 1, 4), noise, torch.tensor([[level]]), known)
    with pytest.raises(ValueError, match="known value at position 6 is not finite"):
        heads.Gaussian().draw(torch.zeros(1, 1, 2), noise, torch.tensor([[math.inf]]), known)


@pytest.mark.needs_extension
@pytest.mark.parametrize("name", COMPILED)
@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**63 - 1),
    scale=st.sampled_from([0.1, 1.0, 5.0, 20.0]),
    temperature=st.sampled_from([1.0, 0.3, 2.5]),
    channel0=st.integers(0, 60_000),
    position=st.integers(0, 2**48 - 1),
    known=st.booleans(),
    data=st.data(),
)
def test_cpp_draws_what_python_draws(name, seed, scale, temperature, channel0, position, known, data):
    """Not one level differs; scores agree to the rounding of float64 sums."""
    from fastgen import _C

    head, channels = HEADS[name]
    groups, count = shape_of(head, channels)
    batch = 13
    generator = torch.Generator().manual_seed(seed)
    parameters = torch.randn(batch, groups, count, generator=generator) * scale
    if head.kind == "categorical" and scale > 1:
        parameters *= scale  # at the greatest scale, weights that underflow
        parameters[torch.rand(parameters.shape, generator=generator) < 0.3] = -torch.inf
        parameters[..., 0] = 0
    levels = head.random_levels((batch, channels), generator).float()
    mask = torch.rand(batch, channels, generator=generator) < 0.5 if known else torch.zeros(batch, channels).bool()
    samples = torch.randint(0, 2**48, (batch,), generator=generator)
    options = {"temperature": temperature}
    if head.kind == "categorical":
        options["top_k"] = data.draw(st.integers(0, head.levels))
        options["top_p"] = data.draw(st.sampled_from([1.0, 0.9, 0.2]))
    python = head.draw(parameters, Noise(seed, samples, position, channel0), levels, mask, **options)
    arrays = (t.numpy() for t in (parameters.flatten(1), samples, mask, levels))
    flat, indices, known_array, level_array = arrays
    compiled = _C.draw(head.spec(), flat, seed, indices, position, channel0, known_array, level_array, **options)
    drawn, inputs, *scores = map(torch.from_numpy, compiled)
    if head.levels:
        assert torch.equal(drawn, python.levels)
    torch.testing.assert_close(drawn, python.levels)
    torch.testing.assert_close(inputs, python.inputs)
    for ours, theirs in zip(scores, (python.log_prob, python.proposal_log_prob), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11, equal_nan=True)


@pytest.mark.needs_extension
def test_cpp_statuses():
    from fastgen import _C

    head, samples, known, levels = (
        heads.Categorical(4),
        *(torch.zeros(1).long(), torch.zeros(1, 1).bool(), torch.zeros(1, 1)),
    )

    def draw(parameters: Tensor, known: Tensor = known, levels: Tensor = levels, spec: dict | None = None):
        arrays = (parameters.numpy(), 0, samples.numpy(), 8, 0, known.numpy(), levels.numpy())
        return _C.draw(spec or head.spec(), *arrays)

    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN, or makes no distribution, at position 8"):
            draw(torch.tensor([[0, 0, bad, 0]]))
    with pytest.raises(ValueError, match="NaN, or makes no distribution, at position 8"):
        draw(torch.full((1, 4), -math.inf))
    for level in (-1.0, 0.5, 4.0, math.nan):
        with pytest.raises(ValueError, match="known level is not one of the head's, at position 8"):
            draw(torch.zeros(1, 4), ~known, torch.full((1, 1), level))
    with pytest.raises(ValueError, match="number of parameters does not fit"):
        draw(torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"head kind must be .*, got 'poisson'"):
        draw(torch.zeros(1, 4), spec=head.spec() | {"kind": "poisson"})


PEN = heads.Composite(heads.BivariateGaussianMixture(1), heads.Bernoulli()).spec()
WRONG_SPECS = [
    (PEN | {"coupled_channels": 2}, "coupled_channels must be the channels of all parts"),
    (PEN | {"parts": []}, "coupled_channels must be the channels of all parts"),
    (PEN | {"parts": [PEN, PEN], "coupled_channels": 6}, "parts must say how many channels they draw"),
    (PEN | {"parts": [PEN["parts"][0] | {"coupled_channels": 1}]}, "coupled_channels must be 2"),
    (PEN | {"parameters": 7}, "parameters must be 1 or more for a custom head, 0 for any other"),
    (heads.Gaussian().spec() | {"parts": PEN["parts"]}, "only a composite head has parts"),
    (heads.LogisticMixture(2).spec() | {"levels": 4}, "a head has 2 levels or more, a continuous one has 0"),
]


@pytest.mark.needs_extension
@pytest.mark.parametrize(("spec", "message"), WRONG_SPECS, ids=[message for _, message in WRONG_SPECS])
def test_cpp_checks_what_a_head_is_made_of(spec, message):
    from fastgen import _C

    arrays = torch.zeros(1, 7).numpy(), 0, torch.zeros(1).long().numpy(), 8, 0, None, torch.zeros(1, 3).numpy()
    with pytest.raises(ValueError, match=message):
        _C.draw(spec, *arrays)
