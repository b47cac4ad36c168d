"""What nflows does itself under ``fastgen.accelerate("nflows")``: its errors, other layers, other dtypes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from tests.interop.parity import count_calls
from tests.interop.peers import import_peer

transforms = import_peer("nflows.transforms")
made = import_peer("nflows.transforms.made")
base = import_peer("nflows.transforms.base")


@pytest.fixture
def calls(monkeypatch):
    """Fails where a kernel is called."""
    splines = count_calls(monkeypatch, "fastgen.interop.nflows_splines", ("rational_quadratic_op", "cubic_op"))
    flows = count_calls(monkeypatch, "fastgen.interop.nflows_autoregressive", ("sequential_affine", "invert_by_degree"))
    return lambda: splines + flows


def parts_of(spline: str, x: Tensor, bins: int = 4) -> list[Tensor]:
    """Random raw parameters of a spline function of ``nflows.transforms.splines``."""
    more = {"rational_quadratic_spline": [bins + 1], "unconstrained_rational_quadratic_spline": [bins - 1]}
    return [torch.randn(*x.shape, size) for size in (bins, bins, *more.get(spline, [1, 1]))]


BOUNDED = ["rational_quadratic_spline", "cubic_spline"]
UNCONSTRAINED = ["unconstrained_rational_quadratic_spline", "unconstrained_cubic_spline"]


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("spline", BOUNDED)
def test_a_value_outside_a_bounded_spline_is_nflows_error(spline, inverse, value, calls):
    x = torch.tensor([0.5, value])
    parts = parts_of(spline, x)
    with pytest.raises((base.InputOutsideDomain, RuntimeError)) as expected:
        getattr(transforms.splines, spline)(x, *parts, inverse=inverse)
    with fastgen.accelerated("nflows"), pytest.raises(expected.type):
        getattr(transforms.splines, spline)(x, *parts, inverse=inverse)
    assert not calls()


@pytest.mark.parametrize("options", [{"min_bin_width": 0.3}, {"min_bin_height": 0.3}])
@pytest.mark.parametrize("spline", BOUNDED + UNCONSTRAINED)
def test_bins_too_wide_for_their_number_are_nflows_error(spline, options):
    x = torch.rand(5)
    with fastgen.accelerated("nflows"), pytest.raises(ValueError, match=r"Minimal bin .* too large"):
        getattr(transforms.splines, spline)(x, *parts_of(spline, x), **options)


@pytest.mark.parametrize("spline", UNCONSTRAINED)
def test_unknown_tails_are_nflows_error(spline):
    x = torch.rand(5)
    with fastgen.accelerated("nflows"), pytest.raises(RuntimeError, match="tails are not implemented"):
        getattr(transforms.splines, spline)(x, *parts_of(spline, x), tails="circular")


OTHERS = {
    "float64": (torch.float64, {}),
    "another interval of values": (torch.float32, {"bottom": -1.0, "top": 2.0}),
    "widths that fill the interval": (torch.float32, {"min_bin_width": 0.25}),
    "no least slope": (torch.float32, {"min_derivative": 0.0}),
    "a tensor as bound": (torch.float32, {"right": torch.tensor(1.0)}),
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_arguments_of_a_spline_are_left_to_nflows(other, calls):
    dtype, options = OTHERS[other]
    x = torch.rand(7)
    given = [t.to(dtype) for t in (x, *parts_of("rational_quadratic_spline", x))]
    spline = "rational_quadratic_spline"
    inverse = "bottom" in options
    options = options | {"inverse": inverse}
    expected = getattr(transforms.splines, spline)(*given, **options)
    with fastgen.accelerated("nflows"):
        found = getattr(transforms.splines, spline)(*given, **options)
    assert not calls()
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("options", "ends"),
    [({"bottom": -1.0, "top": 2.0}, 0.0), ({"min_bin_width": 0.0}, 0.0), ({"left": 0.0}, 14.0), ({"left": 0.0}, -14.0)],
)
def test_other_cubic_splines_are_left_to_nflows(options, ends, calls):
    x = torch.rand(7)
    widths, heights, *_ = parts_of("cubic_spline", x)
    parts = [widths, heights, torch.full((7, 1), ends), torch.zeros(7, 1)]
    expected = transforms.splines.cubic_spline(x, *parts, **options)
    with fastgen.accelerated("nflows"):
        found = transforms.splines.cubic_spline(x, *parts, **options)
    assert not calls()
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_derivatives_of_torch_func_are_left_to_nflows(calls):
    x = torch.rand(7)
    parts = parts_of("rational_quadratic_spline", x)

    def spline(x):
        return transforms.splines.rational_quadratic_spline(x, *parts)

    expected = torch.func.vjp(spline, x)[1]((x, x))
    with fastgen.accelerated("nflows"):
        found = torch.func.vjp(spline, x)[1]((x, x))
    assert not calls()
    assert torch.equal(found[0], expected[0])


class Shifted(transforms.MaskedAffineAutoregressiveTransform):
    """Another flow than the one whose elementwise map is known."""

    def _elementwise_inverse(self, inputs, autoregressive_params):
        outputs, log_det = super()._elementwise_inverse(inputs, autoregressive_params)
        return outputs + 1, log_det


def affine(kind: type[nn.Module] = transforms.MaskedAffineAutoregressiveTransform, **options) -> nn.Module:
    return kind(4, 8, **options)


def with_hook() -> nn.Module:
    layer = affine()
    layer.autoregressive_net.blocks[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return layer


def with_another_mask() -> nn.Module:
    layer = affine()
    layer.autoregressive_net.initial_layer.mask[:, 0] = 0
    return layer


class Bounded(made.MaskedLinear):
    """A masked linear map with other weights than its parameters."""

    def forward(self, x):
        return F.linear(x, self.weight.tanh() * self.mask, self.bias)


class Wrapped(nn.Module):
    """A linear map in the place of a masked one."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear, self.degrees = linear, linear.degrees

    def forward(self, x):
        return 2 * self.linear(x)


def with_layer(place: str, change: Callable[[nn.Module], nn.Module], **options) -> nn.Module:
    """A flow with one of its network's masked linear maps changed."""
    layer = affine(**options)
    network = layer.autoregressive_net
    parent = network.get_submodule(place.rpartition(".")[0])
    setattr(parent, place.rpartition(".")[2], change(network.get_submodule(place)))
    return layer


def bounded(linear: nn.Module) -> nn.Module:
    linear.__class__ = Bounded
    return linear


def without_bias(linear: nn.Module) -> nn.Module:
    linear.bias = None
    return linear


FLOWS = {
    "subclass of a linear map": lambda: with_layer("final_layer", bounded),
    "subclass of a block's linear map": lambda: with_layer("blocks.0.linear", bounded, use_residual_blocks=False),
    "a linear map in another": lambda: with_layer("initial_layer", Wrapped),
    "a block's linear map in another": lambda: with_layer("blocks.1.linear_layers.0", Wrapped),
    "no bias": lambda: with_layer("blocks.0.linear", without_bias, use_residual_blocks=False),
    "batch norm": lambda: affine(use_batch_norm=True).eval(),
    "an activation of rows": lambda: affine(activation=nn.Softmax(-1)),
    "an activation in place": lambda: affine(activation=nn.ReLU(inplace=True), use_residual_blocks=False),
    "subclass": lambda: affine(Shifted),
    "hook": with_hook,
    "another mask": with_another_mask,
    "quadratic spline": lambda: transforms.MaskedPiecewiseQuadraticAutoregressiveTransform(4, 8, tails="linear"),
}


@pytest.mark.parametrize("flow", FLOWS)
def test_another_autoregressive_flow_is_left_to_nflows(flow, calls):
    layer, x = FLOWS[flow](), torch.randn(3, 4)
    with torch.no_grad():
        expected = layer.inverse(x)
        with fastgen.accelerated("nflows"):
            found = layer.inverse(x)
    assert not calls()
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_active_dropout_is_left_to_nflows(calls):
    layer = affine(dropout_probability=0.5, use_residual_blocks=False)
    with fastgen.accelerated("nflows"), torch.no_grad():
        layer.inverse(torch.randn(3, 4))
    assert not calls()


def test_a_context_without_a_layer_for_it_is_nflows_error():
    layer = affine()
    with fastgen.accelerated("nflows"), torch.no_grad(), pytest.raises(AttributeError, match="context_layer"):
        layer.inverse(torch.randn(3, 4), torch.randn(3, 2))


def test_another_source_is_refused(monkeypatch):
    def inverse(self, inputs, context=None):
        return F.relu(inputs)

    kind = transforms.autoregressive.AutoregressiveTransform
    monkeypatch.setattr(kind, "inverse", inverse)
    with pytest.raises(ValueError, match=r"AutoregressiveTransform\.inverse"):
        fastgen.accelerate("nflows")
    assert kind.inverse is inverse
