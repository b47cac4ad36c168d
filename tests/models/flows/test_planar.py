from __future__ import annotations

import math

import torch

from fastgen.models import create_model
from tests.models.flows.laws import CONTEXT, FlowLaws


class TestPlanarFlow(FlowLaws):
    name = "planar"
    small = {"length": 3}
    cases = {
        "vector": small | {"event_shape": (4,)},
        "context": small | CONTEXT | {"event_shape": (3,)},
    }
    plane = small
    discrete = {"event_shape": (1, 3, 3), "levels": 5, "length": 2} | CONTEXT


def test_turned_round_the_samples_are_the_closed_form():
    torch.manual_seed(0)
    model = create_model("planar", event_shape=(3,), length=4, closed_form="inverse").double()
    z = torch.randn(5, 3, dtype=torch.float64)
    x, log_det = model.inverse(z)
    expected = z
    for layer in reversed(model.flow.layers):
        expected, _ = layer.layer(expected)
    assert torch.equal(x, expected)
    torch.testing.assert_close(model(x), (z, -log_det))


def test_trained_by_its_samples_it_approaches_a_density_known_up_to_a_constant():
    """As in the paper: the reverse divergence from a ring, of which a diagonal Gaussian (length 0) misses the shape."""
    torch.manual_seed(0)
    model = create_model("planar", length=8, closed_form="inverse").double()
    optimizer, bounds = torch.optim.Adam(model.parameters(), 2e-2), []

    def energy(x: torch.Tensor) -> torch.Tensor:
        return (x.square().sum(1) - 4).square() / 2

    for _ in range(150):
        z = torch.randn(64, 2, dtype=torch.float64)
        x, log_det = model.inverse(z)
        free = energy(x) + model.base_log_prob(z) - log_det
        optimizer.zero_grad()
        free.mean().backward()
        optimizer.step()
        bounds.append(free.mean().item())
    # the least that is possible: -log of the integral of exp(-energy), over r^2 / 2
    constant = math.pi * math.sqrt(math.pi / 2) * (1 + math.erf(4 / math.sqrt(2)))
    first, last = (sum(part) / len(part) + math.log(constant) for part in (bounds[:5], bounds[-30:]))
    assert 0 < last < first / 2
