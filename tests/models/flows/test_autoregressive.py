"""What the flows of monotone networks share."""

from __future__ import annotations

import pytest
import torch

from fastgen.data.toys import load_toy
from fastgen.metrics.baselines import gaussian_baseline
from fastgen.models import create_model

MODELS = {
    "naf, dsf": ("naf", {"transformer": "dsf"}),
    "naf, ddsf": ("naf", {"transformer": "ddsf"}),
    "sos": ("sos", {}),
    "umnn": ("umnn", {}),
}


@pytest.mark.parametrize(("name", "config"), MODELS.values(), ids=MODELS)
def test_a_tiny_model_soon_fits_two_moons_better_than_a_gaussian(name, config):
    moons = load_toy("two_moons", 5_000).splits
    train, held_out = moons["train"].values, moons["test"].values[:4_000]
    model = create_model(name, preset="tiny", **config)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for batch in train[torch.randint(len(train), (80, 128))]:
        optimizer.zero_grad()
        model.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    with torch.no_grad():
        better = model.eval().log_prob(held_out) - gaussian_baseline(train, held_out).log_prob
    assert better.mean() > 5 * better.std() / len(better) ** 0.5


@pytest.mark.parametrize(("name", "config"), MODELS.values(), ids=MODELS)
def test_each_layer_depends_on_the_numbers_before_and_the_next_on_those_after(name, config):
    model = create_model(name, preset="tiny", event_shape=(4,), layers=2, norm="none", **config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(1, 4, dtype=torch.float64)
    _, first, reverse, second, _ = model.flow.layers
    of_first = torch.autograd.functional.jacobian(lambda x: first(x)[0], x)[0, :, 0]
    of_second = torch.autograd.functional.jacobian(lambda x: reverse(second(reverse(x)[0])[0])[0], x)[0, :, 0]
    for jacobian in (of_first, of_second.flip(0, 1)):
        assert (jacobian.triu(1) == 0).all()
        assert (jacobian.tril() != 0).sum() == 10


@pytest.mark.parametrize(("name", "config"), MODELS.values(), ids=MODELS)
def test_the_inverse_has_the_gradients_of_the_implicit_function(name, config):
    model = create_model(name, preset="tiny", event_shape=(2,), hidden=(6,), layers=1, norm="none", **config)
    z = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model.double().inverse, (z,), fast_mode=True)
    model.inverse(z)[0].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
