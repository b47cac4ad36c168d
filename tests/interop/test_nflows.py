"""nflows' own layers under ``fastgen.accelerate("nflows")``: as exact as without, on the kernels, and taken back."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from tests.interop.parity import EPSILON, check_parity, count_calls, shaken
from tests.interop.peers import import_peer

transforms = import_peer("nflows.transforms")
nets = import_peer("nflows.nn.nets")

pytestmark = pytest.mark.filterwarnings("ignore:Inputs to the softmax are not scaled down")
DIRECTIONS = {"forward": lambda layer, x: layer(x), "inverse": lambda layer, x: layer.inverse(x)}


@pytest.fixture
def calls(monkeypatch) -> Callable[[], list[str]]:
    """Names of the kernels that the acceleration has called."""
    splines = count_calls(monkeypatch, "fastgen.interop.nflows_splines", ("rational_quadratic_op", "cubic_op"))
    flows = count_calls(monkeypatch, "fastgen.interop.nflows_autoregressive", ("sequential_affine", "invert_by_degree"))
    return lambda: splines + flows


class Conditional(nn.Module):
    """A layer with a context of its own."""

    def __init__(self, layer: nn.Module, context: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("context", context)

    def forward(self, x):
        return self.layer(x, self.context)

    def inverse(self, x):
        return self.layer.inverse(x, self.context)


class Plain(nn.Module):
    """A network that takes no notice of the context; ``width`` is an attribute that nflows looks for, or None."""

    def __init__(self, net: nn.Module, width: str | None = None) -> None:
        super().__init__()
        self.net = net
        if width is not None:
            setattr(self, width, 4)

    def forward(self, x, context=None):
        return self.net(x)


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "residual": lambda inputs, outputs: nets.ResidualNet(inputs, outputs, hidden_features=8, num_blocks=1),
    "channels": lambda inputs, outputs: Plain(nn.Linear(inputs, outputs), "hidden_channels"),
    "unknown width": lambda inputs, outputs: Plain(nn.Linear(inputs, outputs)),
}


def couplings(kind: str, network: str, tails: str | None, count: int = 3) -> list[tuple[nn.Module, Tensor]]:
    """Layers of random sizes and their inputs."""
    cases = []
    for seed in range(count):
        sizes = random.Random(seed)
        features, rows = sizes.randint(2, 7), sizes.randint(1, 40)
        bound = sizes.uniform(0.5, 3)
        layer = getattr(transforms, f"Piecewise{kind}CouplingTransform")(
            [1, 0, *(sizes.randint(0, 1) for _ in range(features - 2))],
            NETWORKS[network],
            num_bins=sizes.randint(2, 11),
            tails=tails,
            tail_bound=bound,
            apply_unconditional_transform=sizes.random() < 0.5,
        )
        cases.append((shaken(layer), inside(rows, features) if tails is None else bound * torch.randn(rows, features)))
    return cases


def inside(*shape: int) -> Tensor:
    """Clear of the ends of the interval [0, 1]."""
    return 0.01 + 0.98 * torch.rand(shape)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("tails", [None, "linear"])
@pytest.mark.parametrize("network", NETWORKS)
def test_couplings_of_rational_quadratic_splines(network, tails, direction):
    check_parity("nflows", couplings("RationalQuadratic", network, tails), DIRECTIONS[direction])


@pytest.mark.parametrize("tails", [None, "linear"])
def test_couplings_of_cubic_splines(tails):
    check_parity("nflows", couplings("Cubic", "residual", tails), DIRECTIONS["forward"])


@pytest.mark.needs_extension
@pytest.mark.parametrize("bins", [1, 2, 9])
def test_the_inverse_of_a_cubic_spline_is_exact(bins):
    """nflows solves the cubic by its discriminant, which in float32 may be far off; so its forward is the judge."""
    x, *parts = (torch.randn(300, *size) for size in [(), (bins,), (bins,), (1,), (1,)])
    spline = functools.partial(transforms.splines.unconstrained_cubic_spline, tail_bound=2.0)
    with fastgen.accelerated("nflows"):
        found, log_det = transforms.splines.unconstrained_cubic_spline(x, *parts, inverse=True, tail_bound=2.0)
    back, true = spline(found.double(), *(part.double() for part in parts))
    assert ((back - x).abs() <= 32 * EPSILON * 2 * (1 + true.exp())).all()
    assert (log_det + true).abs().median() <= 32 * EPSILON


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_couplings_of_images(direction):
    cases = [
        (
            shaken(
                transforms.PiecewiseRationalQuadraticCouplingTransform(
                    [1, 0, 1],
                    lambda inputs, outputs: Plain(nn.Conv2d(inputs, outputs, 3, padding=1), "hidden_channels"),
                    num_bins=bins,
                    tails="linear",
                )
            ),
            torch.randn(2, 3, 4, 5),
        )
        for bins in (1, 2, 8)
    ]
    check_parity("nflows", cases, DIRECTIONS[direction])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_splines_without_a_network(direction):
    layers = [
        transforms.PiecewiseRationalQuadraticCDF([3], num_bins=bins, tails=tails, identity_init=identity)
        for bins, tails, identity in [(5, None, False), (1, "linear", False), (10, "linear", True)]
    ]
    check_parity("nflows", [(layer, inside(17, 3)) for layer in layers], DIRECTIONS[direction])


NETS = {
    "residual": {},
    "residual, two blocks, tanh": {"num_blocks": 2, "activation": torch.tanh},
    "plain": {"use_residual_blocks": False},
    "plain, elu": {"use_residual_blocks": False, "activation": F.elu, "num_blocks": 0},
    "plain, random masks": {"use_residual_blocks": False, "random_mask": True},
    "plain, another activation": {"use_residual_blocks": False, "activation": F.gelu},
}


def autoregressive(kind: str, net: str, context: bool) -> list[tuple[nn.Module, Tensor]]:
    cases = []
    for seed in range(2):
        sizes = random.Random(seed)
        features, rows = sizes.randint(1, 5), sizes.randint(1, 20)
        options = {"num_blocks": 1} | NETS[net]
        if kind != "Affine":
            options |= {"num_bins": sizes.randint(2, 6), "tails": "linear", "tail_bound": 2.0}
        layer = getattr(transforms, f"Masked{kind}AutoregressiveTransform")(
            features=features, hidden_features=sizes.randint(4, 12), context_features=3 if context else None, **options
        )
        given = torch.randn(rows, 3)
        cases.append((shaken(Conditional(layer, given) if context else layer, 0.2), torch.randn(rows, features)))
    return cases


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("kind", ["Affine", "PiecewiseRationalQuadratic"])
def test_autoregressive_flows(kind, net, context):
    cases = autoregressive(kind, net, context)
    for call in DIRECTIONS.values():
        check_parity("nflows", cases, call)
    with torch.no_grad():
        for layer, x in cases:
            with fastgen.accelerated("nflows"):
                found, log_det = layer.inverse(x)
                back, log_det_back = layer(found)
            expected, expected_log_det = layer.inverse(x)
            for mine, theirs in [(found, expected), (log_det, expected_log_det)]:
                assert mine.shape == theirs.shape
                torch.testing.assert_close(mine, theirs)
            torch.testing.assert_close(back, x)
            torch.testing.assert_close(log_det_back, -log_det)


@pytest.mark.parametrize("net", ["plain", "residual"])
def test_the_first_feature_does_not_depend_on_the_context_as_in_nflows(net, calls):
    """reports_made_context_first_feature, of a peer whose network cannot: its numbers stay its own."""
    layer = transforms.MaskedAffineAutoregressiveTransform(4, 8, context_features=3, num_blocks=1, **NETS[net])
    u, given = torch.randn(5, 4), torch.randn(2, 5, 3)
    with torch.no_grad():
        expected = [layer.inverse(u, context)[0] for context in given]
        with fastgen.accelerated("nflows"):
            found = [layer.inverse(u, context)[0] for context in given]
    assert calls()
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[0][:, 0], found[1][:, 0])
    assert not torch.equal(found[0][:, 1:], found[1][:, 1:])


def test_the_last_pass_is_nflows_own():
    """The forward of an inverse that no gradient is recorded for gives the log-determinant back but for its sign."""
    for layer, x in autoregressive("Affine", "plain", context=False):
        with fastgen.accelerated("nflows"):
            found, log_det = layer.inverse(x)
            _, back = layer(found)
        assert (log_det + back).abs().max() <= 4 * EPSILON * layer(found)[1].abs().max().clamp(min=1)


SPLINE = {"num_bins": 4, "tails": "linear"}
ON_KERNELS = {
    "rational-quadratic coupling": (
        lambda: transforms.PiecewiseRationalQuadraticCouplingTransform([1, 0], NETWORKS["residual"], **SPLINE),
        "rational_quadratic_op",
    ),
    "bounded rational-quadratic coupling": (
        lambda: transforms.PiecewiseRationalQuadraticCouplingTransform([1, 0], NETWORKS["residual"]),
        "rational_quadratic_op",
    ),
    "cubic coupling": (
        lambda: transforms.PiecewiseCubicCouplingTransform([1, 0], NETWORKS["residual"], **SPLINE),
        "cubic_op",
    ),
    "autoregressive cubic": (
        lambda: transforms.MaskedPiecewiseCubicAutoregressiveTransform(4, 2, 8),
        "cubic_op",
    ),
    "autoregressive spline": (
        lambda: transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(2, 8, **SPLINE),
        "rational_quadratic_op",
    ),
    "autoregressive affine": (
        lambda: transforms.MaskedAffineAutoregressiveTransform(2, 8, use_residual_blocks=False),
        "sequential_affine",
    ),
}


@pytest.mark.needs_extension
@pytest.mark.parametrize("name", ON_KERNELS)
def test_existing_layers_run_on_the_kernels_until_restored(name, calls):
    make, op = ON_KERNELS[name]
    layer, x = make(), inside(5, 2)
    with fastgen.accelerated("nflows"):
        layer.inverse(x)
    made = calls()
    assert op in made
    layer.inverse(x)
    assert calls() == made


@pytest.mark.parametrize("recorded", [False, True])
def test_a_residual_network_is_computed_degree_by_degree(recorded, calls):
    layer, x = transforms.MaskedAffineAutoregressiveTransform(4, 8), torch.randn(3, 4)
    with fastgen.accelerated("nflows"), torch.set_grad_enabled(recorded):
        layer.inverse(x)
    assert calls() == ["invert_by_degree"]
