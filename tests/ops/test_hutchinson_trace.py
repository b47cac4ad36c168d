from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastgen.ops import DenseField, hutchinson_trace
from fastgen.reference import hutchinson_trace as reference
from fastgen.reference.hutchinson_trace import ACTIVATIONS
from tests.ops.fields import SIZES, dense, field_and_callable, gradients, jacobian, leaves

ESTIMATES = ("rademacher", "gaussian", "hutch++")


@pytest.mark.parametrize("given_as", [0, 1], ids=["dense", "callable"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_exact_is_the_trace_of_the_jacobian(sizes, activation, given_as):
    f = field_and_callable(sizes, activation)[given_as]
    x = torch.randn(5, sizes[0], dtype=torch.float64)
    y, trace = hutchinson_trace(f, x, kind="exact")
    torch.testing.assert_close(y, f(x))
    torch.testing.assert_close(trace, jacobian(f, x).diagonal(dim1=1, dim2=2).sum(1))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("probes", [1, 3, 4, 9])
@pytest.mark.parametrize("given_as", [0, 1], ids=["dense", "callable"])
def test_estimates_and_gradients_are_those_of_the_plain_formula(given_as, probes, kind, shared):
    """With fewer probes than numbers, as many, and more; one gradient of x and of all parameters."""
    sizes = (4, 6, 5, 7, 4)
    field, plain = field_and_callable(sizes)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(probes, 1 if shared else 5, 4, dtype=torch.float64)
    found = hutchinson_trace((field, plain)[given_as], x, probes=probes, kind=kind, noise=noise)
    spread = noise.expand(probes, 5, 4)
    y, total = reference.hutchinson_trace(plain, x, spread, spread)
    for mine, theirs in zip(found, (y, total / probes), strict=True):
        torch.testing.assert_close(mine, theirs)
    inputs = leaves(field, x)
    for mine, theirs in zip(gradients(found, inputs), gradients((y, total / probes), inputs), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("given_as", [0, 1], ids=["dense", "callable"])
def test_torch_func_and_forward_mode(given_as):
    f = field_and_callable((3, 4, 5, 3))[given_as]
    x = torch.randn(4, 3, dtype=torch.float64)

    def total(x):
        y, trace = hutchinson_trace(f, x, probes=2, seed=3)
        return y.sum() + (trace * trace).sum()

    tracked = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(total(tracked), tracked)
    torch.testing.assert_close(torch.func.grad(total)(x), wanted)
    tangent = torch.randn_like(x)
    torch.testing.assert_close(torch.func.jvp(total, (x,), (tangent,))[1], (wanted * tangent).sum())
    batch = torch.stack([x, x + 1])
    each = torch.stack([torch.func.grad(total)(one) for one in batch])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(total))(batch), each)


def variance(kind: str, matrix: Tensor, probes: int) -> float:
    symmetric = (matrix + matrix.t()) / 2
    whole = symmetric.square().sum()
    return float(2 * (whole - symmetric.diagonal().square().sum() if kind == "rademacher" else whole) / probes)


@pytest.mark.parametrize("given_as", [0, 1], ids=["dense", "callable"])
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("probes", [1, 3, 7])
def test_estimates_are_unbiased_and_vary_as_theory_says(probes, kind, given_as):
    """Many samples at one point: each has its own noise, from each of several seeds."""
    f = field_and_callable((5, 8, 5))[given_as]
    x = torch.randn(5, dtype=torch.float64)
    matrix = jacobian(f, x[None])[0].detach()
    with torch.no_grad():
        found = [hutchinson_trace(f, x.expand(2000, 5), probes=probes, kind=kind, seed=seed)[1] for seed in range(10)]
    every = torch.cat(found)
    true = variance(kind, matrix, probes)
    assert abs(every.mean() - matrix.trace()) < 4 * math.sqrt(true / len(every))
    centred = (every - matrix.trace()).square()
    assert abs(centred.mean() - true) < 4 * centred.std() / math.sqrt(len(every))


@pytest.mark.parametrize("given_as", [0, 1], ids=["dense", "callable"])
def test_hutch_plus_plus_is_unbiased_and_varies_less(given_as):
    """A Jacobian of rank 2 beside small noise: the sketch takes the large part."""
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    first = torch.cat([10 * low @ low.t(), torch.randn(12, 12, generator=generator, dtype=torch.float64)])
    second = torch.cat([torch.eye(12, dtype=torch.float64), torch.eye(12, dtype=torch.float64)], 1)
    field = DenseField([first, second], [torch.zeros(24).double(), torch.zeros(12).double()], "softplus")
    f = (field, lambda x: field(x))[given_as]
    x = torch.zeros(5000, 12, dtype=torch.float64)
    trace = hutchinson_trace(field, x[:1], kind="exact")[1]
    errors = {
        kind: torch.cat([hutchinson_trace(f, x, probes=9, kind=kind, seed=seed)[1] for seed in range(4)]) - trace
        for kind in ("rademacher", "hutch++")
    }
    ours = errors["hutch++"]
    assert abs(ours.mean()) < 4 * ours.std() / math.sqrt(len(ours))
    assert ours.std() < errors["rademacher"].std() / 5


def test_hutch_plus_plus_has_an_unbiased_gradient():
    """Though the subspace is held constant."""
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(7, 7, dtype=torch.float64)
    x = torch.randn(7, dtype=torch.float64).expand(20000, 7)

    def f(x):
        return torch.sin(scale * x @ matrix)

    exact = torch.autograd.grad(hutchinson_trace(f, x[:1], kind="exact")[1].sum(), scale)[0]
    tangent = torch.func.jvp(
        lambda s: hutchinson_trace(lambda x: torch.sin(s * x @ matrix), x, kind="hutch++", probes=6)[1],
        (scale.detach(),),
        (torch.ones((), dtype=torch.float64),),
    )[1]
    assert abs(tangent.mean() - exact) < 4 * tangent.std() / math.sqrt(len(tangent))


@pytest.mark.parametrize("probes", range(3, 11))
def test_hutch_plus_plus_makes_as_many_products_as_it_says(probes):
    class Counted(torch.autograd.Function):
        made = 0

        @staticmethod
        def forward(ctx, x, matrix):
            ctx.save_for_backward(matrix)
            return x @ matrix

        @staticmethod
        def backward(ctx, gradient):
            assert gradient.isfinite().all()  # a number read, so that a batched backward is impossible
            Counted.made += 1
            return gradient @ ctx.saved_tensors[0].t(), None

    matrix = torch.randn(8, 8)
    x = torch.randn(300, 8)
    with torch.no_grad():
        _, trace = hutchinson_trace(lambda x: Counted.apply(x, matrix), x, kind="hutch++", probes=probes)
    assert Counted.made == min(probes, 8)
    if probes >= 8:
        torch.testing.assert_close(trace, matrix.trace().expand(len(x)), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ESTIMATES)
def test_noise_depends_on_the_seed_and_the_number_of_the_sample(kind):
    field, x = dense((5, 6, 6, 6, 5)), torch.randn(9, 5, dtype=torch.float64)
    given = {"kind": kind, "probes": 4}
    _, whole = hutchinson_trace(field, x, seed=11, **given)
    assert torch.equal(hutchinson_trace(field, x, seed=11, **given)[1], whole)
    assert (hutchinson_trace(field, x, seed=12, **given)[1] != whole).any()
    halves = [hutchinson_trace(field, x[i : i + 4], seed=11, offset=i, **given)[1] for i in (0, 4)]
    torch.testing.assert_close(torch.cat(halves), whole[:8])


def test_one_number_a_sample_has_no_variance_with_random_signs():
    for f in field_and_callable((1, 4, 1)):
        x = torch.randn(6, 1, dtype=torch.float64)
        _, trace = hutchinson_trace(f, x)
        torch.testing.assert_close(trace, jacobian(f, x)[:, 0, 0])


@pytest.mark.parametrize("kind", [*ESTIMATES, "exact", "closed-form"])
@pytest.mark.parametrize("given_as", [0, 1], ids=["dense", "callable"])
def test_no_samples(given_as, kind):
    if kind == "closed-form" and given_as:
        pytest.skip("a callable has none")
    field, plain = field_and_callable((4, 3, 4))
    x = torch.zeros(0, 4, dtype=torch.float64, requires_grad=True)
    y, trace = hutchinson_trace((field, plain)[given_as], x, kind=kind, probes=3)
    assert y.shape == (0, 4)
    assert trace.shape == (0,)
    for tensor, gradient in zip(leaves(field, x), gradients((y, trace), leaves(field, x)), strict=True):
        assert gradient.shape == tensor.shape
        assert (gradient == 0).all()


@pytest.mark.parametrize("probes", [2, 100])
@pytest.mark.parametrize("kind", ["rademacher", "exact"])
def test_an_image_and_a_network_of_convolutions(kind, probes):
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Softplus(), nn.Conv2d(3, 2, 3, padding=1)).double()
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    y, trace = hutchinson_trace(net, x, kind=kind, probes=probes)
    torch.testing.assert_close(y, net(x))
    if kind == "exact":
        torch.testing.assert_close(trace, jacobian(net, x).diagonal(dim1=1, dim2=2).sum(1))
    else:
        (gradient,) = torch.autograd.grad(trace.sum(), net[0].weight)
        assert (gradient != 0).any()


@pytest.mark.parametrize("f", [torch.ones_like, lambda x: x.detach() * 3], ids=["constant", "detached"])
def test_a_field_that_does_not_depend_on_x_has_no_trace(f):
    _, trace = hutchinson_trace(f, torch.randn(4, 3, requires_grad=True), probes=2)
    assert torch.equal(trace, torch.zeros(4))


def test_only_the_path_through_f_counts():
    """A context that was itself computed of x is a constant of the field."""
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    context = x * x
    _, trace = hutchinson_trace(lambda x: context * x, x, kind="exact")
    torch.testing.assert_close(trace, context.sum(1))
    (gradient,) = torch.autograd.grad(trace.sum(), x)
    torch.testing.assert_close(gradient, 2 * x)


def test_a_backward_that_cannot_be_batched_is_looped():
    class Branches(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, gradient):
            return 2 * gradient if gradient.sum().item() > -1e9 else gradient

    _, trace = hutchinson_trace(Branches.apply, torch.randn(4, 9, requires_grad=True), probes=8)
    torch.testing.assert_close(trace, torch.full((4,), 18.0))


@pytest.mark.parametrize("given_as", [0, 1], ids=["dense", "callable"])
def test_half_precision_has_its_trace_in_float32(given_as):
    field = dense((3, 4, 5, 3), dtype=torch.bfloat16)
    f = (field, lambda x: field(x))[given_as]
    x = torch.randn(5, 3).bfloat16()
    y, trace = hutchinson_trace(f, x)
    assert (y.dtype, trace.dtype) == (torch.bfloat16, torch.float32)
    single = dense((3, 4, 5, 3), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        _, trace = hutchinson_trace((single, lambda x: single(x))[given_as], torch.randn(5, 3))
    assert trace.dtype == torch.float32


def use(**changed):
    given = {"f": lambda x: x, "x": torch.zeros(5, 4)} | changed
    return hutchinson_trace(given.pop("f"), given.pop("x"), **given)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"f": lambda x: x[:, :2]}, ValueError, r"f must keep the shape of x, \(5, 4\), got \(5, 2\)"),
        ({"f": lambda x: (x, x)}, TypeError, "f must return a tensor, got a tuple"),
        ({"f": dense((3, 4, 3))}, ValueError, r"x must have shape \[N, 3\], got \(5, 4\)"),
        ({"x": torch.zeros(4)}, ValueError, "x must have shape"),
        ({"x": torch.zeros(5, 4, dtype=torch.int64)}, TypeError, "x must be floating point"),
        ({"probes": 0}, ValueError, r"probes must be from 1 to 65536 for kind.*, got 0"),
        ({"probes": 70000}, ValueError, "probes must .*, got 70000"),
        ({"probes": 2, "kind": "hutch++"}, ValueError, r"probes must be from 3 to 65536 for kind 'hutch\+\+', got 2"),
        ({"kind": "uniform"}, ValueError, r"kind must be one of 'rademacher',.*, got 'uniform'"),
        (
            {"kind": "closed-form"},
            ValueError,
            r"kind must be 'exact' for.*, got 'closed-form', which is of dense fields of one or two hidden layers",
        ),
        (
            {"kind": "closed-form", "f": dense((4, 4, 4, 4, 4))},
            ValueError,
            r"kind must be 'exact' for.*, got 'closed-form', which is of dense fields of one or two hidden layers",
        ),
        ({"noise": torch.zeros(2, 5, 4)}, ValueError, r"noise must have shape .*\(1, 5, 4\).*, got \(2, 5, 4\)"),
        ({"noise": torch.zeros(2, 5, 4), "probes": 3, "kind": "hutch++"}, None, ""),
        (
            {"noise": torch.zeros(1, 5, 4), "kind": "exact"},
            ValueError,
            r"noise must be None for kind 'exact',.*, got a tensor",
        ),
        ({"noise": torch.zeros(1, 5, 4, dtype=torch.int64)}, TypeError, "noise must be floating point"),
        ({"seed": 1 << 63}, ValueError, r"seed must be at least.*, got 9223372036854775808"),
    ],
)
def test_wrong_arguments_are_named(changed, error, words):
    if error is None:
        use(**changed)
        return
    with pytest.raises(error, match=words):
        use(**changed)
