"""zuko's own flows under ``fastgen.accelerate("zuko")``: as exact as without, on the kernels, and taken back."""

from __future__ import annotations

import functools
import pickle
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastgen
from tests.interop.parity import EPSILON, check_parity, count_calls, shaken
from tests.interop.peers import import_peer

zuko = import_peer("zuko")


class Conditioned(nn.Module):
    """A flow and its context."""

    def __init__(self, flow: nn.Module, context: Tensor | None = None) -> None:
        super().__init__()
        self.flow = flow
        self.register_buffer("context", context)

    @property
    def transform(self):
        return self.flow(self.context).transform


DIRECTIONS = {
    "forward": lambda layer, x: layer.transform.call_and_ladj(x),
    "inverse": lambda layer, x: layer.transform.inv.call_and_ladj(x),
}


@pytest.fixture
def calls(monkeypatch) -> Callable[[], list[str]]:
    """Names of the kernels that the acceleration has called."""
    splines = count_calls(monkeypatch, "fastgen.interop.zuko_spline", ("rq_spline",))
    flows = count_calls(monkeypatch, "fastgen.interop.zuko_autoregressive", ("sequential_affine", "invert_by_degree"))
    return lambda: splines + flows


FLOWS = {
    "MAF": lambda **options: zuko.flows.MAF(transforms=2, **options),
    "MAF, random orders": lambda **options: zuko.flows.MAF(transforms=2, randperm=True, **options),
    "MAF, elu": lambda **options: zuko.flows.MAF(transforms=1, activation=nn.ELU, **options),
    "MAF, another slope": lambda **options: zuko.flows.MAF(
        transforms=1, univariate=functools.partial(zuko.transforms.MonotonicAffineTransform, slope=1e-2), **options
    ),
    "MAF, silu": lambda **options: zuko.flows.MAF(transforms=1, activation=nn.SiLU, **options),
    "MAF, residual": lambda **options: zuko.flows.MAF(transforms=1, residual=True, **options),
    "MAF, groups": lambda **options: zuko.flows.MAF(transforms=1, passes=4, **options),
    "NSF": lambda **options: zuko.flows.NSF(transforms=1, bins=5, **options),
    "NSF, coupling": lambda **options: zuko.flows.NSF(transforms=1, passes=2, **options),
    "NSF, residual": lambda **options: zuko.flows.NSF(transforms=1, bins=1, residual=True, **options),
    "NCSF": lambda **options: zuko.flows.NCSF(transforms=1, bins=4, **options),
}
COUPLINGS = {
    "NICE": lambda **options: zuko.flows.NICE(transforms=2, **options),
    "spline coupling": lambda **options: zuko.flows.NICE(
        transforms=2, univariate=zuko.transforms.MonotonicRQSTransform, shapes=[(4,), (4,), (3,)], **options
    ),
}


def cases(make: Callable[..., nn.Module], context: str) -> list[tuple[nn.Module, Tensor]]:
    """Flows of random sizes and their inputs."""
    found = []
    for seed in range(2):
        sizes = random.Random(seed)
        features, rows, width = sizes.randint(4, 6), sizes.randint(2, 12), sizes.randint(1, 3)
        hidden = [sizes.randint(6, 12)] * 2
        given = {"none": None, "one": torch.randn(width), "rows": torch.randn(rows, width)}[context]
        flow = make(features=features, context=0 if given is None else width, hidden_features=hidden)
        found.append((Conditioned(shaken(flow, 0.2), given), torch.randn(rows, features)))
    return found


@pytest.mark.parametrize("context", ["none", "one", "rows"])
@pytest.mark.parametrize("name", FLOWS)
def test_autoregressive_flows(name, context):
    made = cases(FLOWS[name], context)
    for call in DIRECTIONS.values():
        check_parity("zuko", made, call)
    with torch.no_grad():
        for layer, x in made:
            expected = layer.transform.inv(x)
            with fastgen.accelerated("zuko"):
                torch.testing.assert_close(layer.transform.inv(x), expected)


@pytest.mark.parametrize(
    "name", [name for name in FLOWS if name != "NSF, residual"]
)  # a spline of one bin is the identity
def test_every_feature_depends_on_the_context_as_in_zuko(name, calls):
    """reports_made_context_first_feature, of a peer whose network has it right."""
    flow, u = FLOWS[name](features=5, context=2), torch.randn(3, 5)
    given = torch.randn(2, 3, 2)
    with torch.no_grad():
        expected = [flow(context).transform.inv(u) for context in given]
        with fastgen.accelerated("zuko"):
            found = [flow(context).transform.inv(u) for context in given]
    assert calls()
    torch.testing.assert_close(found, expected)
    assert ((found[0] - found[1]).abs().amax(0) > 1e-6).all()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", COUPLINGS)
def test_couplings(name, direction):
    check_parity("zuko", cases(COUPLINGS[name], "rows"), DIRECTIONS[direction])


class Spline(nn.Module):
    """A spline by parameters of its own."""

    def __init__(self, *shape: int, bins: int, bound: float, slope: float, scale: float) -> None:
        super().__init__()
        raw = [scale * torch.randn(*shape, size) for size in (bins, bins, bins - 1)]
        self.raw, self.options = nn.ParameterList(raw), {"bound": bound, "slope": slope}

    @property
    def transform(self):
        return zuko.transforms.MonotonicRQSTransform(*self.raw, **self.options)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_splines(direction, scale):
    """Parameters for every number, for every column, and for more rows than there are numbers."""
    options = [
        ((9, 3), (9, 3), 8, 5.0, 1e-3),
        ((3,), (9, 3), 2, 1.0, 1e-2),
        ((7, 1), (4,), 3, 2.0, 0.5),
    ]
    made = [
        (Spline(*of, bins=bins, bound=bound, slope=slope, scale=scale), 0.7 * bound * torch.randn(shape))
        for of, shape, bins, bound, slope in options
    ]
    check_parity("zuko", made, DIRECTIONS[direction])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_spline_of_one_bin_is_the_identity(direction):
    layer, x = Spline(5, bins=1, bound=3.0, slope=1e-6, scale=1.0), 3 * torch.randn(5)
    with fastgen.accelerated("zuko"):
        y, log_det = DIRECTIONS[direction](layer, x)
    torch.testing.assert_close(y, x)
    assert log_det.abs().max() <= 4 * EPSILON


def test_tables_of_a_spline_are_made_when_they_are_asked_for():
    layer = Spline(4, 3, bins=5, bound=2.0, slope=1e-3, scale=1.0)
    expected = layer.transform
    with fastgen.accelerated("zuko"):
        found = layer.transform
    assert isinstance(found, zuko.transforms.MonotonicRQSTransform)
    assert repr(found) == repr(expected)
    assert found.bins == expected.bins
    for name in ("horizontal", "vertical", "derivatives"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    copied = pickle.loads(pickle.dumps(found))
    assert type(copied) is zuko.transforms.MonotonicRQSTransform
    assert torch.equal(copied.horizontal, expected.horizontal)
    with pytest.raises(AttributeError, match="no attribute 'diagonal'"):
        found.diagonal  # noqa: B018


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("use", ["values", "tables", "torch.func"])
def test_a_spline_keeps_its_gradients_whatever_its_first_use(without, use):
    layer, x = Spline(4, 3, bins=5, bound=2.0, slope=1e-3, scale=1.0), torch.randn(4, 3)
    expected = torch.autograd.grad(layer.transform(x).sum(), list(layer.raw))
    with fastgen.accelerated("zuko"):
        transform = layer.transform
        with without():
            if use == "values":
                transform(x)
            elif use == "tables":
                assert transform.bin(torch.zeros(4, 3, dtype=torch.long))[0].all()
            else:
                torch.func.vmap(transform)(x[None])
        for values in (transform(x), transform(x.double())):
            found = torch.autograd.grad(values.sum(), list(layer.raw), retain_graph=True)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_spline_keeps_its_place_when_its_parameters_move_on():
    layer, x = Spline(4, 3, bins=5, bound=2.0, slope=1e-3, scale=1.0), torch.randn(4, 3)
    with fastgen.accelerated("zuko"):
        transform, expected = layer.transform, layer.transform(x)
        shaken(layer)
        assert torch.equal(transform(x), expected)


@pytest.mark.parametrize("batch", [(), (7,), (2, 3)])
def test_linear_maps(batch):
    class Map(nn.Module):
        def __init__(self, features: int) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(features, features) / features + torch.eye(features))

    made = [(Map(features), torch.randn(*batch, features)) for features in (1, 4, 9)]
    check_parity("zuko", made, lambda layer, x: zuko.transforms.LULinearTransform(layer.matrix).inv.call_and_ladj(x))


ON_KERNELS = {
    "MAF": (lambda: zuko.flows.MAF(5, transforms=2), ["sequential_affine"] * 2),
    "NSF": (lambda: zuko.flows.NSF(5, transforms=1), ["rq_spline"] * 6 + ["invert_by_degree"]),
    "NSF, coupling": (lambda: zuko.flows.NSF(5, transforms=1, passes=2), ["rq_spline"] * 2),
}


@pytest.mark.needs_extension
@pytest.mark.parametrize("name", ON_KERNELS)
def test_existing_flows_run_on_the_kernels_until_restored(name, calls):
    make, ops = ON_KERNELS[name]
    flow, x = make(), torch.randn(3, 5)
    with fastgen.accelerated("zuko"):
        flow().transform.inv(x)
    assert calls() == ops
    flow().transform.inv(x)
    assert calls() == ops


@pytest.mark.parametrize("name", ["MAF, residual", "MAF, silu", "NSF, residual", "NCSF"])
@pytest.mark.parametrize("recorded", [False, True])
def test_a_network_is_computed_degree_by_degree(name, recorded, calls):
    flow, x = FLOWS[name](features=5, context=0), torch.randn(3, 5)
    with fastgen.accelerated("zuko"), torch.set_grad_enabled(recorded):
        flow().transform.inv(x)
    assert "invert_by_degree" in calls()


def test_the_last_pass_is_zukos_own():
    """One more pass from what the inverse gives changes it by no more than the features' own rounding."""
    for layer, x in cases(FLOWS["MAF, another slope"], "none"):
        with fastgen.accelerated("zuko"), torch.no_grad():
            transform = layer.transform
            found = transform.inv(x)
            assert (transform(found) - x).abs().max() <= 8 * EPSILON * x.abs().max().clamp(min=1)


LEFT = {
    "adjacency": lambda: zuko.flows.autoregressive.MaskedAutoregressiveTransform(
        5, adjacency=torch.ones(5, 5, dtype=torch.bool).tril()
    ),
    "another univariate transform": lambda: zuko.flows.SOSPF(5, transforms=1, degree=1, polynomials=1).transform,
    "softmax": lambda: zuko.flows.MAF(5, transforms=1, activation=lambda: nn.Softmax(-1)).transform,
    "hook": lambda: with_hook(zuko.flows.MAF(5, transforms=1)).transform,
    "another mask": lambda: with_another_mask(zuko.flows.MAF(5, transforms=1)).transform,
    "an activation in place": lambda: (
        zuko.flows.MAF(5, transforms=1, activation=functools.partial(nn.ReLU, inplace=True), residual=True).transform
    ),
}


def with_hook(flow: nn.Module) -> nn.Module:
    flow.transform.transforms[0].hyper[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    return flow


def with_another_mask(flow: nn.Module) -> nn.Module:
    flow.transform.transforms[0].hyper[2].mask[0, -1] ^= True
    return flow


@pytest.mark.parametrize("name", LEFT)
def test_others_are_left_to_zuko(name, calls):
    transform = LEFT[name]()
    x = torch.randn(3, 5, dtype=next(transform.parameters()).dtype)
    expected = transform().inv(x)
    with fastgen.accelerated("zuko"):
        found = transform().inv(x)
    assert not calls()
    assert torch.equal(found, expected)


MASKS = {
    "the first": lambda linear: None,
    "written to": lambda linear: linear.mask.logical_not_(),
    "another": lambda linear: setattr(linear, "mask", ~linear.mask),
    "loaded": lambda linear: linear.load_state_dict(linear.state_dict() | {"mask": ~linear.mask}),
    "of double precision": lambda linear: linear.double(),
}


@pytest.mark.parametrize("change", MASKS)
@pytest.mark.parametrize("inference", [False, True])
def test_a_masked_linear_map_has_the_mask_of_the_moment(change, inference):
    linear, x = zuko.nn.MaskedLinear(torch.rand(7, 5) > 0.5), torch.randn(3, 5)
    with fastgen.accelerated("zuko"):
        with torch.inference_mode(inference):
            linear(x)
        MASKS[change](linear)
        x = x.to(linear.weight.dtype)
        found = linear(x)
        gradients = torch.autograd.grad(found.square().sum(), [*linear.parameters()])
    expected = linear(x)
    assert torch.equal(found, expected)
    for one, other in zip(gradients, torch.autograd.grad(expected.square().sum(), [*linear.parameters()]), strict=True):
        assert torch.equal(one, other)


def test_derivatives_of_torch_func_are_left_to_zuko(calls):
    flow, x = zuko.flows.NSF(5, transforms=1), torch.randn(5)
    expected = torch.func.jacrev(lambda x: flow().transform(x))(x)
    with fastgen.accelerated("zuko"):
        found = torch.func.jacrev(lambda x: flow().transform(x))(x)
    assert torch.equal(found, expected)


def test_another_source_is_refused(monkeypatch):
    kind = zuko.transforms.AutoregressiveTransform
    monkeypatch.setattr(kind, "_inverse", lambda self, y: y)
    with pytest.raises(ValueError, match=r"AutoregressiveTransform\._inverse"):
        fastgen.accelerate("zuko")
    assert kind._inverse.__name__ == "<lambda>"
