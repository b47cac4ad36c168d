from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastgen.nn import MaskedAutoregressive, MaskedMLP, MaskedSplineAutoregressive, ResMADE, SplineTransform

FEATURES, CONTEXT = 5, 3
ORDERS = pytest.mark.parametrize("order", ["natural", "reversed", [2, 0, 4, 1, 3]], ids=str)
DEGREES = pytest.mark.parametrize("hidden_degrees", ["sequential", "random"])
NETWORKS = {
    "one layer": lambda n, **options: MaskedMLP(FEATURES, n, (11,), **options),
    "three layers": lambda n, **options: MaskedMLP(FEATURES, n, (9, 13, 7), activation="tanh", **options),
    "fewer units than features": lambda n, **options: MaskedMLP(FEATURES, n, (2, 3), **options),
    "no block": lambda n, **options: ResMADE(FEATURES, n, 12, 0, **options),
    "one block": lambda n, **options: ResMADE(FEATURES, n, 7, 1, activation="elu", **options),
    "three blocks": lambda n, **options: ResMADE(FEATURES, n, 13, 3, **options),
}
NETWORK = pytest.mark.parametrize("network", NETWORKS)


def make(network: str, context: bool = False, **options) -> MaskedAutoregressive:
    torch.manual_seed(0)
    spline = SplineTransform(bins=3)
    options |= {"context_features": CONTEXT} if context else {}
    return MaskedAutoregressive(NETWORKS[network](spline.parameters_per_element, **options), spline).double()


def data(n: int = 4, context: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    x, given = (torch.randn(n, size, generator=generator, dtype=torch.float64) for size in (FEATURES, CONTEXT))
    return x, given if context else None


def by_full_passes(layer: MaskedAutoregressive, u: torch.Tensor, context: torch.Tensor | None):
    """The textbook: D passes of the whole network, each of which settles one more feature."""
    x = torch.zeros_like(u)
    for _ in range(FEATURES):
        x, log_det = layer.transform.inverse(u, layer.network(x, context))
    return x, log_det


@NETWORK
@ORDERS
@DEGREES
def test_the_inverse_is_that_of_full_passes_and_so_are_its_gradients(network, order, hidden_degrees):
    layer = make(network, True, order=order, hidden_degrees=hidden_degrees)
    u, context = (tensor.requires_grad_() for tensor in data(4, True))
    results = []
    for inverse in (layer.inverse, lambda u, context: by_full_passes(layer, u, context)):
        x, log_det = inverse(u, context)
        loss = x.sin().sum() + log_det.square().sum()
        results.append([x, log_det, *torch.autograd.grad(loss, [u, context, *layer.parameters()])])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)
    with torch.no_grad():
        for mine, theirs in zip(layer.inverse(u, context), results[1][:2], strict=True):
            torch.testing.assert_close(mine, theirs)


@NETWORK
@ORDERS
def test_the_law_of_a_flow_layer(network, order):
    layer = make(network, True, order=order)
    x, context = data(3, True)
    u, log_det = layer(x, context)
    back, log_det_back = layer.inverse(u, context)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-9, atol=1e-9)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x, context)[0], x)
    for i in range(3):
        torch.testing.assert_close(torch.linalg.slogdet(jacobian[i, :, i])[1], log_det[i])


@NETWORK
@DEGREES
def test_the_inverse_multiplies_no_more_than_one_pass_does(network, hidden_degrees):
    layer = make(network, hidden_degrees=hidden_degrees)
    u, _ = data()
    counts = []
    for direction in (layer.forward, layer.inverse):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            direction(u)
        counts.append(counter.get_total_flops())
    used = 2 * len(u) * sum(int(linear.mask.sum()) for linear in layer.network.layers)
    assert used <= counts[1] <= counts[0]


def test_gradients_of_gradients_are_exact():
    layer = make("one block", True)
    u, context = data(1, True)
    arguments = u.requires_grad_(), context.requires_grad_()
    torch.autograd.gradgradcheck(lambda u, context: layer.inverse(u, context)[0], arguments)


@pytest.mark.parametrize("samples", [0, 1])
@pytest.mark.parametrize("features", [1, 4])
def test_small_batches_and_one_feature(samples, features):
    layer = MaskedSplineAutoregressive(features, width=6, bins=3, context_features=2)
    x, context = torch.randn(samples, features), torch.randn(samples, 2)
    u, log_det = layer(x, context)
    back, log_det_back = layer.inverse(u, context)
    assert log_det.shape == log_det_back.shape == (samples,)
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recorded", [False, True])
def test_log_determinants_are_float32_at_least(recorded):
    layer = MaskedSplineAutoregressive(3, width=8).bfloat16()
    for direction in (layer.forward, layer.inverse):
        with torch.set_grad_enabled(recorded):
            y, log_det = direction(torch.randn(5, 3, dtype=torch.bfloat16))
        assert (y.dtype, log_det.dtype) == (torch.bfloat16, torch.float32)
    layer = layer.float()
    for direction in (layer.forward, layer.inverse):
        with torch.set_grad_enabled(recorded), torch.autocast("cpu", torch.bfloat16):
            y, log_det = direction(torch.randn(5, 3))
        assert (y.dtype, log_det.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("kind", ["rational-quadratic", "cubic"])
@pytest.mark.parametrize("tails", ["bounded", "circular"])
def test_values_outside_a_bounded_spline_are_refused(kind, tails):
    layer = MaskedSplineAutoregressive(3, width=8, kind=kind, tails=tails, bound=(0.0, 1.0, -2.0, 2.0))
    x = torch.rand(5, 3)
    u, _ = layer(x)
    assert -2 <= u.min() <= u.max() <= 2
    torch.testing.assert_close(layer.inverse(u)[0], x, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"x must be within 0.0 to 1.0 .*, got .* to 1.5"):
        layer(x.index_fill(0, torch.tensor(2), 1.5))
    with pytest.raises(ValueError, match=r"x must be within -2\.0 to 2\.0 for a.*, got 2\.5 to 2\.5"):
        layer.inverse(u.index_fill(1, torch.tensor(1), 2.5))


def test_a_compiled_layer_has_no_break():
    layer = make("one block", True)
    x, context = data(4, True)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(compiled(x, context), layer(x, context), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 0}, "width must be an integer of at least 1, got 0"),
        ({"blocks": -1}, "blocks must be an integer of at least 0, got -1"),
        ({"bins": 0}, "bins must be an integer of at least 1, got 0"),
        ({"tails": "none"}, "tails must be one of 'bounded', 'linear', 'circular', got 'none'"),
        ({"kind": "linear"}, "kind must be one of 'rational-quadratic', 'cubic', got 'linear'"),
        ({"order": "random"}, "order must be 'natural', 'reversed' or a permutation, got 'random'"),
        ({"activation": "gelu"}, "activation must be one of 'relu', 'tanh', 'sigmoid', 'elu', got 'gelu'"),
    ],
)
def test_wrong_arguments_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        MaskedSplineAutoregressive(3, **options)


def test_a_network_of_other_outputs_and_inputs_of_another_shape_are_named():
    with pytest.raises(
        ValueError, match="network must have 8 outputs a feature, as many as the transform takes, got 4"
    ):
        MaskedAutoregressive(MaskedMLP(3, 4), SplineTransform(bins=3))
    layer = make("one block", True)
    with pytest.raises(ValueError, match="x must have shape"):
        layer(torch.zeros(2, 4).double(), torch.zeros(2, CONTEXT).double())
    with pytest.raises(ValueError, match="u must have shape"):
        layer.inverse(torch.zeros(2, 4).double(), torch.zeros(2, CONTEXT).double())
    with pytest.raises(ValueError, match=r"context must be \[\.\.\., 3\] .*, got None"):
        layer.inverse(torch.zeros(2, FEATURES).double())
