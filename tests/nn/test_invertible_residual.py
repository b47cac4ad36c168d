from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from fastgen.nn.residual import residual_log_det
from fastgen.nn.residual.fixed_point import FixedPointNotConverged
from fastgen.nn.residual.invertible_residual import InvertibleResidual
from fastgen.nn.residual.lipschitz_net import LipschitzConvNet, LipschitzMLP
from fastgen.nn.residual.residual_log_det import neumann_series, roulette, series, series_of_traces, survival

D, N = 3, 4


class Plain(nn.Module):
    """A g that fastgen knows nothing of, with a context."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(D + 2, 5), nn.Linear(5, D)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return 0.4 * self.second(self.first(torch.cat((x, context), 1)).sin()).tanh()


def make(kind: str) -> tuple[nn.Module, Tensor, Tensor | None]:
    """A net of Lipschitz constant below 1 that is far from 0, data and a context."""
    torch.manual_seed(1)
    options = {"zero": False, "coefficient": 0.9}
    net, context = {
        "dense": lambda: (LipschitzMLP(D, (6, 5), **options), None),
        "context": lambda: (LipschitzMLP(D, (6, 5), pre_activation=True, context_features=2, **options), 2),
        "elu": lambda: (LipschitzMLP(D, (6, 5), activation="elu", **options), None),
        "convolutional": lambda: (LipschitzConvNet(1, (1, D), 4, context_features=2, **options), 2),
        "plain": lambda: (Plain(), 2),
    }[kind]()
    net.double()
    if kind != "plain":
        with torch.no_grad():
            for layer in net.layers:
                layer.weight.abs_().mul_(4)
    shape = (N, 1, 1, D) if kind == "convolutional" else (N, D)
    x = torch.randn(shape, dtype=torch.float64)
    return net.eval(), x, None if context is None else torch.randn(N, context, dtype=torch.float64)


KINDS = ("dense", "context", "elu", "convolutional", "plain")


def near_identity() -> tuple[nn.Module, Tensor]:
    """A g of large trace, so that a series cut off is far from the whole one, and its products nearly without noise."""
    torch.manual_seed(1)
    net = LipschitzMLP(D, (D,), activation="tanh", zero=False, coefficient=0.9).double()
    with torch.no_grad():
        for layer in net.layers:
            layer.weight.copy_(2 * torch.eye(D) + 0.2 * torch.randn(D, D))
    return net.eval(), 0.3 * torch.randn(N, D, dtype=torch.float64)


def g_of(net: nn.Module, context: Tensor | None):
    return net.at(context) if hasattr(net, "at") else lambda x: net(x, context)


def weighted_gradient(net: nn.Module, x: Tensor, log_det: Tensor) -> Tensor:
    """Of the log-determinants, each with a weight of its own, in x and all parameters."""
    weights = torch.tensor([2.0, -1.0, 0.5, 7.0], dtype=torch.float64)
    found = torch.autograd.grad((weights * log_det).sum(), [x, *net.parameters()], materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])


def sign_vectors(x: Tensor) -> list[Tensor]:
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=D)), dtype=x.dtype)
    return [v.expand(N, D).reshape(x.shape) for v in signs]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("terms", [1, 2, 3, 11])
def test_the_mean_over_all_sign_vectors_is_the_series_of_exact_traces(kind, terms):
    net, x, context = make(kind)
    x.requires_grad_()
    coefficients = torch.linspace(1, 3, terms, dtype=torch.float64)
    y, expected = series_of_traces(g_of(net, context), x, coefficients)
    torch.testing.assert_close(y, net(x, context) if context is not None else net(x))
    gradient = weighted_gradient(net, x, expected)
    for estimate in (series, neumann_series):
        found = [estimate(g_of(net, context), x, v, coefficients)[1] for v in sign_vectors(x)]
        torch.testing.assert_close(torch.stack(found).mean(0), expected)
        gradients = torch.stack([weighted_gradient(net, x, one) for one in found])
        torch.testing.assert_close(gradients.mean(0), gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_both_gradients_have_the_same_value(kind):
    net, x, context = make(kind)
    for v in sign_vectors(x)[:3]:
        coefficients = torch.linspace(1, 2, 5, dtype=torch.float64)
        g = g_of(net, context)
        torch.testing.assert_close(neumann_series(g, x, v, coefficients)[1], series(g, x, v, coefficients)[1])


def test_products_that_vanish_are_left_out():
    net, x, _ = make("dense")
    with torch.no_grad():
        net.layers[-1].weight.copy_(1e-3 * net.layers[-1].weight)
    g, v, calls = net.at(), sign_vectors(x)[1], []
    original = type(g).power_products

    def counted(field, x, vectors, count):
        calls.append(count)
        return original(field, x, vectors, count)

    coefficients = torch.ones(60, dtype=torch.float64)
    expected = series(g, x, v, coefficients)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(g), "power_products", counted)
        torch.testing.assert_close(neumann_series(g, x, v, coefficients)[1], expected, rtol=1e-14, atol=0)
    assert sum(calls) == 8


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_log_det_is_that_of_the_jacobian_and_the_limit_of_the_series(kind):
    net, x, context = make(kind)
    layer = InvertibleResidual(net, log_det="exact")
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x, context)[0].flatten(1).sum(0), x)
    expected = jacobian.flatten(2).transpose(0, 1).slogdet()[1]
    torch.testing.assert_close(layer(x, context)[1], expected)
    whole = InvertibleResidual(net, log_det="power-series", trace="exact", terms=150)
    torch.testing.assert_close(whole(x, context)[1], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("distribution", "parameter", "gradient"),
    [("geometric", 0.4, "neumann"), ("poisson", 3.0, "neumann"), ("geometric", 0.4, "autograd")],
)
def test_the_roulette_is_unbiased_over_many_seeds(distribution, parameter, gradient):
    net, x = near_identity()
    x.requires_grad_()
    exact = InvertibleResidual(net, log_det="exact")(x)[1]
    expected = torch.cat((exact.detach(), weighted_gradient(net, x, exact)))
    layer = InvertibleResidual(net, distribution=distribution, parameter=parameter, gradient=gradient)
    layer.training = True
    found = []
    for seed in range(400):
        log_det = layer(x, seed=seed)[1]
        found.append(torch.cat((log_det.detach(), weighted_gradient(net, x, log_det))))
    found = torch.stack(found)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - expected).abs() <= 5 * error + 1e-12).all()
    without = series_of_traces(net.at(), x, torch.ones(layer.exact_terms, dtype=x.dtype))[1]
    cut = torch.cat((without.detach(), weighted_gradient(net, x, without)))
    assert ((cut - expected)[:N].abs() > 10 * error[:N]).all(), "a series cut off would pass"


@pytest.mark.parametrize(("distribution", "parameter"), [("geometric", 0.5), ("geometric", 0.2), ("poisson", 2.0)])
def test_the_roulette_draws_its_distribution_and_divides_by_it(distribution, parameter):
    draws = 1500
    lengths = torch.zeros(64)
    for seed in range(draws):
        drawn = roulette(survival(distribution, parameter), 3, seed, torch.device("cpu"))
        lengths[len(drawn) - 3] += 1
        assert (drawn[:3] == 1).all()
        for k, weight in enumerate(drawn[3:].tolist(), 1):
            if distribution == "geometric":
                reached = (1 - parameter) ** (k - 1)
            else:
                reached = 1 - sum(math.exp(-parameter) * parameter**i / math.factorial(i) for i in range(k))
            assert weight == pytest.approx(1 / reached, rel=1e-6)
    for n in range(8):
        if distribution == "geometric":
            share = parameter * (1 - parameter) ** (n - 1) if n else 0.0
        else:
            share = math.exp(-parameter) * parameter**n / math.factorial(n)
        assert abs(lengths[n] / draws - share) <= 5 * (share * (1 - share) / draws) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log_det", ["exact", "power-series", "russian-roulette"])
@torch.no_grad()
def test_the_inverse_undoes_the_layer_and_with_the_same_seed_its_log_det(kind, log_det):
    net, x, context = make(kind)
    layer = InvertibleResidual(net, log_det=log_det, tolerance=1e-12)
    z, forward = layer(x, context, seed=3)
    back, inverse = layer.inverse(z, context, seed=3)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse, -forward)
    assert torch.equal(layer(x, context, seed=3)[1], forward)
    if log_det != "exact":
        assert (layer(x, context, seed=4)[1] != forward).any()


def test_the_inverse_is_within_its_tolerance():
    net, z, _ = make("dense")
    for tolerance in (1e-2, 1e-6):
        x, _ = InvertibleResidual(net, tolerance=tolerance).inverse(z, seed=0)
        assert (x + net(x) - z).abs().max() <= tolerance


def test_a_g_that_is_no_contraction_is_reported():
    layer = InvertibleResidual(nn.Linear(2, 2), max_iterations=20)
    with torch.no_grad():
        layer.net.weight.copy_(3 * torch.eye(2))
    with pytest.raises(FixedPointNotConverged, match=r"3 of 3 samples are not within tolerance=1e-05 .*=20: the worst"):
        layer.inverse(torch.ones(3, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_the_inverse_has_the_gradient_of_the_implicit_function(kind):
    net, z, context = make(kind)
    layer = InvertibleResidual(net, log_det="exact", tolerance=1e-14)
    assert torch.autograd.gradcheck(lambda z: layer.inverse(z, context), z.requires_grad_())
    x = layer.inverse(z, context)[0]
    probe = torch.randn_like(x)
    found = torch.autograd.grad((probe * x).sum(), net.parameters())
    at = x.detach()
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x, context)[0].flatten(1).sum(0), at)
    solved = torch.linalg.solve(jacobian.flatten(2).permute(1, 2, 0), probe.flatten(1)[:, :, None])[:, :, 0]
    g = g_of(net, context)
    expected = torch.autograd.grad(-(solved.reshape(at.shape) * g(at)).sum(), net.parameters())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["dense", "elu"])
def test_the_neumann_gradient_keeps_no_more_for_more_terms(kind):
    net, x, _ = make(kind)
    net.train(False)

    def kept(gradient: str, terms: int) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        layer = InvertibleResidual(net, log_det="power-series", terms=terms, gradient=gradient)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = layer(x.requires_grad_(), seed=0)
        assert result[1].requires_grad
        return sum(sizes.values())

    assert kept("neumann", 20) == kept("neumann", 3)
    assert kept("autograd", 20) > 2 * kept("autograd", 3)


def test_the_neumann_gradient_is_not_differentiated_again_and_the_other_is():
    net, x, _ = make("elu")
    x.requires_grad_()
    with pytest.raises(NotImplementedError, match="use gradient='autograd'"):
        torch.autograd.grad(InvertibleResidual(net)(x, seed=0)[1].sum(), x, create_graph=True)
    layer = InvertibleResidual(net, gradient="autograd", exact_terms_evaluation=3)
    assert torch.autograd.gradgradcheck(lambda x: layer(x, seed=0)[1], x)


@pytest.mark.parametrize("kind", ["dense", "plain"])
def test_torch_func_differentiates_it(kind):
    net, x, context = make(kind)
    layer = InvertibleResidual(net)
    found = torch.func.grad(lambda x: layer(x, context, seed=0)[1].sum())(x)
    (expected,) = torch.autograd.grad(layer(x.requires_grad_(), context, seed=0)[1].sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["dense", "convolutional"])
def test_single_precision_autocast_and_half(kind):
    net, x, context = make(kind)
    net.float()
    x, context = x.float(), None if context is None else context.float()
    layer = InvertibleResidual(net)
    z, log_det = layer(x, context, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        for found, expected in zip(layer(x, context, seed=0), (z, log_det), strict=True):
            assert torch.equal(found, expected)
        assert (layer.inverse(z, context, seed=0)[0] - x).abs().max() <= 1e-3
    half, log_det = layer(x.bfloat16(), context, seed=0)
    assert half.dtype == torch.bfloat16
    assert log_det.dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "log_det"),
    [("dense", "exact"), ("dense", "power-series"), ("dense", "russian-roulette"), ("plain", "russian-roulette")],
)
def test_it_compiles_without_a_break(kind, log_det):
    torch._dynamo.reset()
    net, x, context = make(kind)
    layer = InvertibleResidual(net, log_det=log_det, distribution="poisson", exact_terms_evaluation=3)
    compiled = torch.compile(lambda x, c: layer(x, c, seed=0), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for found, expected in zip(compiled(x, context), layer(x, context, seed=0), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("log_det", ["exact", "power-series", "russian-roulette"])
def test_a_batch_of_none(log_det):
    net, x, _ = make("dense")
    layer = InvertibleResidual(net, log_det=log_det)
    for direction in (layer, layer.inverse):
        y, log_det = direction(x[:0])
        assert y.shape == (0, D)
        assert log_det.shape == (0,)


def test_the_noise_of_a_sample_is_of_its_number():
    x = torch.zeros(6, 2, 2)
    whole = residual_log_det.probe(x, 5)
    assert torch.equal(residual_log_det.probe(x[:2], 5), whole[:2])
    assert set(whole.unique().tolist()) == {-1.0, 1.0}


def test_wrong_arguments_are_refused():
    net = LipschitzMLP(2, (4,))
    for name in ("log_det", "trace", "gradient", "distribution"):
        with pytest.raises(ValueError, match=f"{name} must be one of.*, got 'none'"):
            InvertibleResidual(net, **{name: "none"})
    for name in ("terms", "exact_terms", "exact_terms_evaluation", "max_iterations"):
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got 0"):
            InvertibleResidual(net, **{name: 0})
    for distribution, parameter in (("geometric", 1.0), ("geometric", 0.0), ("poisson", 0.0), ("poisson", math.nan)):
        with pytest.raises(ValueError, match=f"parameter must be .* for '{distribution}'"):
            InvertibleResidual(net, distribution=distribution, parameter=parameter)
    with pytest.raises(ValueError, match="tolerance must be greater than 0, got 0"):
        InvertibleResidual(net, tolerance=0.0)
    with pytest.raises(ValueError, match="must keep the shape"):
        InvertibleResidual(nn.Linear(2, 3))(torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"x must have shape \[N, 2\], got \(1, 3\)"):
        InvertibleResidual(net)(torch.zeros(1, 3))
