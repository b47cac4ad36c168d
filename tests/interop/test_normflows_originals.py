"""What normflows does itself under ``fastgen.accelerate("normflows")``: other layers, errors, odd memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastgen
from tests.interop.parity import attributes, count_calls, differing
from tests.interop.peers import import_peer

nf = import_peer("normflows")

DIRECTIONS = {"forward": lambda layer, x: layer(x), "inverse": lambda layer, x: layer.inverse(x)}


@pytest.fixture(autouse=True)
def small_tensors_too(monkeypatch):
    monkeypatch.setattr("fastgen.interop.worthwhile.ALWAYS", True)


@pytest.fixture
def calls(monkeypatch):
    """Names of the ops that the acceleration has called."""
    found = count_calls(monkeypatch, "fastgen.interop.normflows", ["affine_coupling", "lu_conv1x1", "rq_spline"])
    return count_calls(monkeypatch, "fastgen.interop.normflows_autoregressive", ["sequential_affine"], found)


class Hooked(nf.flows.MaskedAffineAutoregressive):
    """Another flow than the one whose elementwise map is known."""

    def _elementwise_inverse(self, inputs, autoregressive_params):
        outputs, log_det = super()._elementwise_inverse(inputs, autoregressive_params)
        return outputs + 1, log_det


def doubled(module, inputs, output):
    return 2 * output


def made_with(**options) -> nn.Module:
    return nf.flows.MaskedAffineAutoregressive(4, 8, use_residual_blocks=False, **options)


def with_hook() -> nn.Module:
    layer = made_with()
    layer.autoregressive_net.blocks[0].register_forward_hook(doubled)
    return layer


class Doubled(nn.Module):
    """A linear map in the place of a masked one."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return 2 * self.linear(x)


def with_another(name: str) -> nn.Module:
    layer = made_with()
    network = layer.autoregressive_net
    setattr(network, name, Doubled(getattr(network, name)))
    return layer


def without_bias() -> nn.Module:
    layer = made_with()
    layer.autoregressive_net.blocks[0].linear.bias = None
    return layer


OTHERS = {
    "no bias": without_bias,
    "another first map": lambda: with_another("initial_layer"),
    "another last map": lambda: with_another("final_layer"),
    "batch norm": lambda: made_with(use_batch_norm=True).eval(),
    "subclass": lambda: Hooked(4, 8, use_residual_blocks=False),
    "hook": with_hook,
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_autoregressive_flow_is_left_to_normflows(other, calls):
    layer, x = OTHERS[other](), torch.randn(3, 4)
    expected = layer.inverse(x)
    with fastgen.accelerated("normflows"):
        found = layer.inverse(x)
    assert not calls
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("other", OTHERS)
@torch.no_grad()
def test_a_network_that_is_more_than_its_masks_is_left_to_normflows(other):
    layer, x = OTHERS[other](), torch.randn(3, 4)
    expected = layer.inverse(x)
    with fastgen.accelerated("normflows"):
        found = layer.inverse(x)
    assert all(map(torch.equal, found, expected))


def test_a_flow_without_a_hidden_layer_is_inverted_degree_by_degree():
    layer, x = made_with(num_blocks=0), torch.randn(3, 4)
    expected = layer.inverse(x)
    with fastgen.accelerated("normflows"):
        found = layer.inverse(x)
    for value, same in zip(found, expected, strict=True):
        torch.testing.assert_close(value, same, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("recorded", [False, True])
def test_a_context_reaches_the_network(recorded):
    layer = nf.flows.MaskedAffineAutoregressive(4, 8, context_features=2)
    x, context = torch.randn(3, 4), torch.randn(3, 2)
    with torch.set_grad_enabled(recorded):
        expected = layer.inverse(x, context)
        with fastgen.accelerated("normflows"):
            found = layer.inverse(x, context)
    assert all(map(torch.equal, found, expected))


def test_active_dropout_is_left_to_normflows(calls):
    layer = made_with(dropout_probability=0.5)
    with fastgen.accelerated("normflows"):
        layer.inverse(torch.randn(3, 4))
    assert not calls


def test_function_transforms_are_left_to_normflows(calls):
    coupling, passive, x = nf.flows.AffineCoupling(nn.Linear(2, 6)), torch.randn(5, 2), torch.randn(5, 3)

    def layer(x):
        (_, y), log_det = coupling([passive, x])
        return y, log_det

    expected = torch.func.jvp(layer, (x,), (torch.ones_like(x),))
    with fastgen.accelerated("normflows"):
        found = torch.func.jvp(layer, (x,), (torch.ones_like(x),))
    assert not calls
    for pair in zip(found, expected, strict=True):
        assert all(map(torch.equal, *pair))


SPLINES = nf.utils.splines


def parts_of(x: torch.Tensor, layout: str, bins: int, inner: int) -> list[torch.Tensor]:
    """Raw widths, heights and derivatives, in several places of memory."""
    count = 3 * bins + inner
    sizes = [bins, bins, bins + inner]
    if layout == "rows":
        return list(torch.randn(x.shape[0], x.shape[1] * count).view(*x.shape, count).split(sizes, -1))
    if layout == "transposed":
        return list(torch.randn(x.shape[1], x.shape[0], count).transpose(0, 1).split(sizes, -1))
    if layout == "channels":
        return list(torch.randn(x.shape[0], count, x.shape[1]).transpose(1, 2).split(sizes, -1))
    if layout == "shared":
        return [torch.randn(size).expand(*x.shape, size) for size in sizes]
    return [torch.randn(*x.shape, size) for size in sizes]


@pytest.mark.parametrize("recorded", ["all", "some", "none"])
@pytest.mark.parametrize("layout", ["rows", "transposed", "channels", "shared", "apart"])
@pytest.mark.parametrize("bounded", [False, True])
def test_a_spline_takes_parameters_wherever_they_are(bounded, layout, recorded):
    name = "rational_quadratic_spline" if bounded else "unconstrained_rational_quadratic_spline"
    x = torch.rand(5, 3)
    parts = parts_of(x, layout, 4, 1 if bounded else -1)
    if recorded == "some":
        parts[1] = parts[1].detach().requires_grad_()
    if recorded == "all":
        parts = [p.detach().requires_grad_() for p in parts]

    def found():
        y, log_det = getattr(SPLINES, name)(x, *parts)
        leaves = [p for p in parts if p.requires_grad]
        gradients = torch.autograd.grad((y + 2 * log_det).sum(), leaves) if leaves else ()
        return y, log_det, *gradients

    expected = found()
    with fastgen.accelerated("normflows"):
        for mine, theirs in zip(found(), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["rows", "transposed"])
def test_the_gradient_reaches_the_tensor_that_parameters_were_cut_from(layout):
    """Also where the library scales widths and heights in place first."""
    x = torch.rand(5, 3)

    def found():
        torch.manual_seed(1)
        leaf = (torch.randn(5, 3 * 11) if layout == "rows" else torch.randn(3, 5, 11)).requires_grad_()
        whole = leaf * 1
        rows = whole.view(5, 3, 11) if layout == "rows" else whole.transpose(0, 1)
        widths, heights, derivatives = rows[..., :4], rows[..., 4:8], rows[..., 8:]
        widths /= 3
        heights /= 2
        y, log_det = SPLINES.unconstrained_rational_quadratic_spline(x, widths, heights, derivatives)
        return y, log_det, *torch.autograd.grad((y + 2 * log_det).sum(), leaf)

    expected = found()
    with fastgen.accelerated("normflows"):
        for mine, theirs in zip(found(), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "case",
    [
        {"tails": "cubic"},
        {"min_bin_width": 0.3},
        {"min_bin_height": 0.3},
    ],
    ids=str,
)
def test_errors_of_a_spline_are_those_of_normflows(case):
    x = torch.rand(5, 3)
    parts = parts_of(x, "rows", 4, -1)
    with pytest.raises((RuntimeError, ValueError)) as theirs:
        SPLINES.unconstrained_rational_quadratic_spline(x, *parts, **case)
    with fastgen.accelerated("normflows"), pytest.raises(theirs.type, match=f"^{theirs.value}$"):
        SPLINES.unconstrained_rational_quadratic_spline(x, *parts, **case)


def test_a_value_outside_a_bounded_spline_is_an_error_of_normflows():
    x = torch.rand(5, 3) + 2
    parts = parts_of(x, "rows", 4, 1)
    with fastgen.accelerated("normflows"), pytest.raises(RuntimeError, match="out of bounds"):
        SPLINES.rational_quadratic_spline(x, *parts)


def test_an_unknown_scale_map_is_an_error_of_normflows():
    layer = nf.flows.AffineCoupling(nn.Linear(1, 2), scale_map="softplus")
    with fastgen.accelerated("normflows"), pytest.raises(NotImplementedError, match="scale map"):
        layer([torch.ones(2, 1), torch.ones(2, 1)])


def test_a_network_runs_once_even_if_the_kernel_does_not_take_its_output(calls):
    runs = []

    def network(x):
        runs.append(x)
        return torch.ones(1, 4, dtype=x.dtype)  # one row for all

    layer = nf.flows.AffineCoupling(nn.Identity())
    layer.param_map.forward = network
    z = [torch.randn(3, 2), torch.randn(3, 2)]
    expected, _ = layer(z)
    with fastgen.accelerated("normflows"):
        found, _ = layer(z)
    assert len(runs) == 2
    assert not calls
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("network", ["t", "s"])
@pytest.mark.parametrize("place", [0, 1], ids=["kept", "changed"])
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_infinite_parameters_of_a_masked_coupling_give_what_normflows_gives(value, place, network):
    linear = nn.Linear(2, 2)
    with torch.no_grad():
        linear.bias[place] = value
    layer, x = nf.flows.MaskedAffineFlow(torch.tensor([1.0, 0.0]), **{network: linear}), torch.ones(1, 2)
    for direction in DIRECTIONS.values():
        with fastgen.accelerated("normflows"):
            found = direction(layer, x)
        torch.testing.assert_close(found, direction(layer, x), equal_nan=True)


def test_another_source_is_refused_and_nothing_is_replaced(monkeypatch):
    def forward(self, z):
        return z, 0

    monkeypatch.setattr(nf.flows.AffineCoupling, "forward", forward)
    before = attributes("normflows")
    with pytest.raises(
        ValueError,
        match=r"the installed library must be normflows.*, got one whose AffineCoupling\.forward has another source",
    ):
        fastgen.accelerate("normflows")
    assert differing(before, attributes("normflows")) == []
