"""The context reaches every feature of a conditional masked network, the first one too."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastgen.models import create_model
from fastgen.nn import (
    MADE,
    DeepDenseSigmoidal,
    DeepSigmoidal,
    InverseAutoregressive,
    MaskedAffineAutoregressive,
    MaskedAutoregressive,
    MaskedMLP,
    MaskedSplineAutoregressive,
    MonotoneIntegral,
    ResMADE,
    SOSPolynomial,
)

D, CONTEXT = 4, 2
ORDERS = ["natural", "reversed", [2, 0, 3, 1]]
DEGREES = ["sequential", "random"]


def masked(transform: nn.Module, **options) -> MaskedAutoregressive:
    return MaskedAutoregressive(MaskedMLP(D, transform.parameters_per_element, **options), transform)


NETWORKS = {
    "MADE": lambda **options: MADE(D, (9, 8), **options),
    "MaskedMLP": lambda **options: MaskedMLP(D, 3, (9, 8), **options),
    "ResMADE": lambda **options: ResMADE(D, 3, 9, **options),
    "ResMADE of no block": lambda **options: ResMADE(D, 3, 9, blocks=0, **options),
}
LAYERS = {
    "MaskedAffineAutoregressive": lambda **options: MaskedAffineAutoregressive(D, (9, 8), **options),
    "InverseAutoregressive": lambda **options: InverseAutoregressive(D, (9, 8), **options),
    "MaskedSplineAutoregressive": lambda **options: MaskedSplineAutoregressive(D, width=9, bins=3, **options),
    "DeepSigmoidal": lambda **options: masked(DeepSigmoidal(3), hidden=(9,), **options),
    "DeepDenseSigmoidal": lambda **options: masked(DeepDenseSigmoidal(3), hidden=(9,), **options),
    "SOSPolynomial": lambda **options: masked(SOSPolynomial(2, 2), hidden=(9,), **options),
    "MonotoneIntegral": lambda **options: masked(MonotoneIntegral(3, (5,), intervals=6), hidden=(9,), **options),
}
MODELS = ["maf", "iaf", "naf", "sos", "umnn", "nsf_autoregressive"]


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(3, width, generator=generator, dtype=torch.float64) for width in (D, CONTEXT))


def stacked(found: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return torch.stack(found, -1) if isinstance(found, tuple) else found


@pytest.mark.parametrize("hidden_degrees", DEGREES)
@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_network_says_of_a_feature_depends_on_the_context_and_on_the_features_before(
    name, order, hidden_degrees
):
    """reports_made_context_first_feature"""
    torch.manual_seed(0)
    options = {"activation": "elu", "order": order, "hidden_degrees": hidden_degrees, "context_features": CONTEXT}
    net = NETWORKS[name](**options).double()
    of_x, of_context = torch.autograd.functional.jacobian(
        lambda x, c: stacked(net(x, c)).sum(0), tuple(t[:1] for t in inputs())
    )
    assert (of_context != 0).all()
    before = net.degrees[0][:, None] > net.degrees[0]
    assert (of_x.squeeze(2)[~before.unsqueeze(1).expand(-1, of_x.shape[1], -1)] == 0).all()
    if hidden_degrees == "sequential":
        assert (of_x.squeeze(2)[before.unsqueeze(1).expand(-1, of_x.shape[1], -1)] != 0).all()


@pytest.mark.parametrize(("order", "hidden_degrees"), list(zip(ORDERS[1:], DEGREES, strict=True)), ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_a_conditional_layer_inverts_itself_and_its_first_feature_depends_on_the_context(name, order, hidden_degrees):
    torch.manual_seed(0)
    options = {"order": order, "hidden_degrees": hidden_degrees, "activation": "elu"}
    layer = LAYERS[name](**options, context_features=CONTEXT).double()
    network = layer.network if isinstance(layer, MaskedAutoregressive) else layer.made
    x, context = inputs()
    u, log_det = layer(x, context)
    back, back_log_det = layer.inverse(u, context)
    torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(back_log_det, -log_det, rtol=1e-8, atol=1e-8)
    first = int(network.degrees[0].argmin())
    for direction in (layer, layer.inverse):
        of_x, of_context = torch.autograd.functional.jacobian(lambda x, c, f=direction: f(x, c)[0].sum(0), (x, context))
        assert (of_context[first] != 0).all()
        before = network.degrees[0][:, None] >= network.degrees[0]
        assert (of_x.abs().amax(1)[~before] == 0).all()


@pytest.mark.parametrize("name", MODELS)
def test_every_number_of_a_model_of_one_layer_depends_on_the_context(name):
    torch.manual_seed(0)
    small = {"steps" if name == "nsf_autoregressive" else "layers": 1, "event_shape": (D,), "vector": CONTEXT}
    model = create_model(name, preset="tiny", **small).double().eval()
    x, context = inputs()
    of_context = torch.autograd.functional.jacobian(lambda c: model(x, c)[0].sum(0), context)
    assert (of_context.abs().amax((1, 2)) > 0).all()
    torch.testing.assert_close(model.inverse(model(x, context)[0], context)[0], x, rtol=1e-7, atol=1e-7)


def test_one_layer_learns_that_the_first_number_is_the_context():
    torch.manual_seed(0)
    layer = MaskedAffineAutoregressive(2, hidden=(16, 16), activation="tanh", context_features=1)
    optimizer = torch.optim.Adam(layer.parameters(), 1e-2)

    def loss(rows: int) -> torch.Tensor:
        c = torch.randn(rows, 1)
        u, log_det = layer(torch.cat([c + 0.1 * torch.randn(rows, 1), torch.randn(rows, 1)], 1), c)
        return (0.5 * u.square().sum(1) + math.log(2 * math.pi) - log_det).mean()

    for _ in range(400):
        optimizer.zero_grad()
        loss(256).backward()
        optimizer.step()
    truth = 1 + math.log(2 * math.pi) + math.log(0.1)  # 0.535; 2.843 without the context
    assert abs(loss(20_000).item() - truth) < 0.1


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_context_degrees_are_as_they_were(name):
    net = NETWORKS[name]()
    assert all(int(degrees.min()) == 1 for degrees in net.degrees)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_saved_with_other_degrees_computes_what_it_computed(name):
    """Weights saved by fastgen before conditional networks had units of degree 0."""
    torch.manual_seed(0)
    options = {"order": "reversed", "activation": "elu"}
    old, new = NETWORKS[name](**options), NETWORKS[name](**options, context_features=CONTEXT).double()
    old.context, old.context_features = nn.Linear(CONTEXT, new.context.out_features, bias=False), CONTEXT
    old = old.double()
    x, context = inputs()
    assert not torch.equal(stacked(old(x, context)), stacked(new(x, context)))
    new.load_state_dict(old.state_dict())
    assert torch.equal(stacked(old(x, context)), stacked(new(x, context)))
