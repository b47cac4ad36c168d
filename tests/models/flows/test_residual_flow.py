from __future__ import annotations

import copy
import math

import pytest
import torch

from fastgen.models import create_model
from fastgen.models.flows import NoSamples
from fastgen.nn import InvertibleResidual
from tests.models.flows.laws import CONTEXT, FlowLaws
from tests.models.flows.residual import EXACT, IMAGE, VECTOR, check_the_bound, trained, two_moons


class TestResidualFlow(FlowLaws):
    """The laws of an exact density hold for ``log_det="exact"``; what holds of the estimates comes after."""

    name = "residual_flow"
    cases = {
        "vector": VECTOR | CONTEXT | {"norm": math.inf},
        "image": IMAGE | CONTEXT,
        "factored out": IMAGE | {"factor_out": True, "dense_blocks": 0, "act_norm": False},
    }
    plane = VECTOR | {"event_shape": (2,)}
    discrete = IMAGE | CONTEXT


@pytest.fixture(scope="module")
def moons():
    return trained("residual_flow", 150, exact_features=0)


def test_the_bound_holds_after_training(moons):
    check_the_bound(moons)


@torch.no_grad()
def test_refresh_finds_the_bound_of_weights_that_were_changed_in_eval_mode(moons):
    model = copy.deepcopy(moons)
    for parameter in model.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    with pytest.raises(AssertionError):
        check_the_bound(model)
    model.refresh()
    check_the_bound(model)
    assert not model.training


def test_the_bound_of_convolutions_holds_after_training():
    torch.manual_seed(0)
    model = create_model("residual_flow", preset="tiny_image", blocks=1, hidden=8, event_shape=(1, 4, 4))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    levels = torch.randint(0, 5, (16, 1, 4, 4)).cumsum(3)
    for _ in range(40):
        optimizer.zero_grad()
        model.loss(levels).backward()
        optimizer.step()
    check_the_bound(model.eval())
    noise = torch.rand(levels.shape)
    bound = model.elbo(levels, noise=noise, seed=1)
    assert torch.equal(model.elbo(levels, noise=noise, seed=1), bound)
    assert (model.elbo(levels, noise=noise, seed=2) != bound).any()


@torch.no_grad()
def test_trained_on_two_moons_it_beats_the_normal_density_of_the_same_moments(moons):
    x, held_out = two_moons(5000, 998), two_moons(2000, 999)
    normal = torch.distributions.MultivariateNormal(x.mean(0), x.t().cov())
    gained = moons.log_prob(held_out, seed=0) - normal.log_prob(held_out)
    assert gained.mean() > 0.2


@torch.no_grad()
def test_the_mean_over_seeds_is_the_exact_log_prob(moons):
    x = two_moons(32, 1)
    exact = trained("residual_flow", 0, **EXACT)
    exact.load_state_dict(moons.state_dict())
    expected = exact.eval().log_prob(x)
    found = torch.stack([moons.log_prob(x, seed=seed) for seed in range(300)])
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - expected).abs() <= 5 * error + 1e-4).all()


@torch.no_grad()
def test_the_same_seed_gives_the_same_estimate_in_both_directions(moons):
    x = two_moons(8, 0)
    log_det = moons(x, seed=5)[1]
    assert torch.equal(moons(x, seed=5)[1], log_det)
    assert (moons(x, seed=6)[1] != log_det).any()
    back, inverse_log_det = moons.double().inverse(moons(x.double(), seed=5)[0], seed=5)
    moons.float()
    torch.testing.assert_close(back, x.double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(inverse_log_det.float(), -log_det, rtol=0, atol=1e-2)
    drawn, log_prob = moons.sample(6, seed=2, return_log_prob=True)
    again, same = moons.sample(6, seed=2, return_log_prob=True)
    assert torch.equal(drawn, again)
    assert torch.equal(log_prob, same)


@torch.no_grad()
def test_in_the_plane_evaluation_is_exact_unless_told_otherwise(moons):
    x = two_moons(32, 1)
    model, exact = (trained("residual_flow", 0, **config) for config in ({}, EXACT))
    for one in (model, exact):
        one.load_state_dict(moons.state_dict())
        one.eval()
    assert torch.equal(model.log_prob(x), exact.log_prob(x))
    assert (model.train().log_prob(x) != exact.log_prob(x)).any()


def test_evaluation_keeps_more_exact_terms_than_training():
    model = create_model("residual_flow", preset="tiny", exact_terms=3, exact_terms_evaluation=30)
    blocks = [module for module in model.modules() if isinstance(module, InvertibleResidual)]
    assert len(blocks) == model.config.blocks
    assert {(block.exact_terms, block.exact_terms_evaluation) for block in blocks} == {(3, 30)}


def test_an_inverse_that_does_not_converge_says_so(moons):
    short = trained("residual_flow", 0, max_iterations=1)
    short.load_state_dict(moons.state_dict())
    words = r"the inverse of residual_flow is not found: .* of 4 samples are not within tolerance=1e-05 after max_iter"
    with pytest.raises(NoSamples, match=words):
        short.eval().sample(4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"coefficient": 1.0}, r"coefficient must be greater than 0 and less than 1, got 1\.0"),
        ({"coefficient": 1.5}, r"coefficient must be greater than 0 and less than 1, got 1\.5"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"log_det": "none"}, "log_det must be one of 'exact'.*, got 'none'"),
        ({"norm": 3.0}, r"domain and codomain must be one of \(2, 2\), .*, got \(3\.0, 3\.0\)"),
        ({"event_shape": (1, 6, 6), "scales": 3}, "multiples of 4"),
        ({"event_shape": (1, 8, 8), "alpha": 0.5}, "alpha must be at least 0 and less than 0.5, got 0.5"),
        ({"event_shape": (1, 8)}, "event_shape"),
    ],
)
def test_a_bad_config_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        create_model("residual_flow", preset="tiny", **config)


def test_a_model_says_what_of_its_likelihood_is_estimated():
    small = {"blocks": 1, "hidden": 4}
    assert create_model("residual_flow", event_shape=(2,), levels=0, **small).estimates() == ()
    vector = create_model("residual_flow", event_shape=(3,), levels=0, **small)
    (roulette,) = vector.estimates()
    assert "more than 2 numbers by 20 terms of the series and a random number more, unbiased; one probe" in roulette
    image = create_model("i_resnet", event_shape=(1, 8, 8), levels=17, scales=1, terms=4, **small)
    bound, series = image.estimates()
    assert bound == "a lower bound, by one draw of dequantization noise an example"
    assert "4 terms of the series, biased by the rest" in series
