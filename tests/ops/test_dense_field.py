from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen.ops import DenseField, hutchinson_trace
from fastgen.reference import hutchinson_trace as reference
from fastgen.reference.hutchinson_trace import ACTIVATIONS, DENSE
from tests.ops.fields import SIZES, dense, field_and_callable, gradients, jacobian, leaves, parameters

EPSILON = torch.finfo(torch.float32).eps


def test_the_closed_form_is_exact_and_chosen_by_name():
    for sizes in SIZES[:2]:
        field = dense(sizes)
        x = torch.randn(5, sizes[0], dtype=torch.float64)
        _, trace = hutchinson_trace(field, x, kind="closed-form")
        torch.testing.assert_close(trace, hutchinson_trace(field, x, kind="exact")[1])
        torch.testing.assert_close(trace, jacobian(field, x).diagonal(dim1=1, dim2=2).sum(1))


def test_a_field_equals_itself_alone():
    weights, biases = [torch.ones(2, 2), torch.ones(2, 2)], [torch.zeros(2), torch.zeros(2)]
    field, other = (DenseField(weights, biases, "tanh") for _ in range(2))
    assert field == field
    assert field != other
    assert len({field, other}) == 2


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "hutch++", "exact"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_field_given_as_such_and_as_a_callable_agree(sizes, activation, kind):
    field, plain = field_and_callable(sizes, activation)
    x = torch.randn(7, sizes[0], dtype=torch.float64, requires_grad=True)
    for probes in (3, 6):
        fast, slow = (hutchinson_trace(f, x, probes=probes, kind=kind, seed=5) for f in (field, plain))
        torch.testing.assert_close(fast, slow)
        inputs = leaves(field, x)
        for mine, theirs in zip(gradients(fast, inputs), gradients(slow, inputs), strict=True):
            torch.testing.assert_close(mine, theirs)
        with torch.no_grad():
            for f in (field, plain):
                silent = hutchinson_trace(f, x, probes=probes, kind=kind, seed=5)
                torch.testing.assert_close(silent, tuple(o.detach() for o in fast))
                assert not any(o.requires_grad for o in silent)


@pytest.mark.parametrize("kind", ["rademacher", "exact", "closed-form"])
@pytest.mark.parametrize("sizes", [(2, 3, 2), (2, 3, 3, 2), (2, 3, 2, 3, 2)], ids=str)
def test_gradcheck_and_gradgradcheck(sizes, kind):
    if kind == "closed-form" and len(sizes) > 4:
        pytest.skip("three hidden layers have no closed form")
    field = dense(sizes)
    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    layers = len(field.weights)

    def function(x, *tensors):
        rebuilt = DenseField(tensors[:layers], tensors[layers:], "tanh")
        return hutchinson_trace(rebuilt, x, kind=kind)

    tensors = leaves(field, x)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("probes", [(), (3,)], ids=["one vector", "several"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_power_products_are_those_of_the_jacobian(sizes, activation, probes):
    field = dense(sizes, activation)
    x, vectors = torch.randn(5, sizes[0]).double(), torch.randn(*probes, 5, sizes[0]).double()
    y, terms = field.power_products(x, vectors, 4)
    torch.testing.assert_close(y, field(x))
    assert not y.requires_grad
    wanted, matrices = vectors, jacobian(field, x)
    for term in terms:
        wanted = torch.einsum("...ni,nij->...nj", wanted, matrices)
        torch.testing.assert_close(term, wanted)
    assert field.power_products(x, vectors, 0)[1].shape == (0, *vectors.shape)
    assert field.power_products(x[:0], vectors[..., :0, :], 2)[1].shape == (2, *probes, 0, sizes[0])


@pytest.mark.parametrize(
    ("shape", "count", "words"),
    [((3, 2), 1, r"vectors must have shape .*, got \(3, 2\)"), ((5, 3), -1, "count must be at least 0, got -1")],
)
def test_wrong_power_products_are_named(shape, count, words):
    with pytest.raises(ValueError, match=words):
        dense((3, 4, 3)).power_products(torch.zeros(5, 3).double(), torch.zeros(shape).double(), count)


@pytest.mark.parametrize("kind", ["rademacher", "hutch++", "exact"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_biases_of_each_sample(sizes, kind):
    """The same as of each sample's own field, with the gradients."""
    field, x = dense(sizes), torch.randn(5, sizes[0], dtype=torch.float64, requires_grad=True)
    biases = [torch.randn(5, len(bias), dtype=torch.float64, requires_grad=True) for bias in field.biases]
    both = DenseField(field.weights, biases, "tanh")
    each = [DenseField(field.weights, [bias[n] for bias in biases], "tanh") for n in range(5)]
    noise = None if kind == "exact" else torch.randn(2 if kind == "hutch++" else 3, 5, sizes[0], dtype=torch.float64)
    found = hutchinson_trace(both, x, probes=3, kind=kind, noise=noise)
    parts = []
    for n, one in enumerate(each):
        own = noise if noise is None else noise[:, n : n + 1]
        parts.append(hutchinson_trace(one, x[n : n + 1], probes=3, kind=kind, noise=own))
    wanted = tuple(torch.cat(part) for part in zip(*parts, strict=True))
    torch.testing.assert_close(found, wanted)
    inputs = leaves(both, x)
    torch.testing.assert_close(gradients(found, inputs), gradients(wanted, inputs))
    with torch.no_grad():
        torch.testing.assert_close(hutchinson_trace(both, x, probes=3, kind=kind, noise=noise), wanted)
        torch.testing.assert_close(both.power_products(x, x, 1)[1][0], both.products(x, x[None])[0])


@pytest.mark.parametrize("trained", ["x", "parameters"])
def test_what_needs_no_gradient_gets_none_and_changes_nothing(trained):
    field = dense((3, 4, 5, 3))
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=trained == "x")
    others = [*field.weights, *field.biases]
    for tensor in others:
        tensor.requires_grad_(trained == "parameters")
    inputs = [x] if trained == "x" else others
    found = gradients(hutchinson_trace(field, x, probes=2), inputs)
    wanted = gradients(hutchinson_trace(lambda x: field(x), x, probes=2), inputs)
    torch.testing.assert_close(found, wanted)


def test_the_graph_can_be_used_twice():
    field, x = dense((3, 4, 5, 3)), torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    outputs, inputs = hutchinson_trace(field, x, probes=2), leaves(field, x)
    first = gradients(outputs, inputs, retain_graph=True)
    torch.testing.assert_close(gradients(outputs, inputs), first, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["rademacher", "exact"])
def test_a_field_compiles_without_a_graph_break(kind):
    x = torch.randn(5, 3)
    linear = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    maps = linear[::2]

    def total(x):
        field = DenseField([m.weight for m in maps], [m.bias for m in maps], "tanh")
        y, trace = hutchinson_trace(field, x, probes=2, kind=kind)
        return y.sum() + trace.square().sum()

    found = []
    for function in (total, torch.compile(total, fullgraph=True, backend="aot_eager")):
        value = function(x)
        found.append([value.detach(), *torch.autograd.grad(value, linear.parameters())])
    torch.testing.assert_close(*found)


KERNEL_SIZES = [*SIZES, (5, 16, 5), (17, 64, 33, 17), (64, 65, 128, 64), (3, 1, 2, 257, 3)]
"""Tails of vectors and of blocks, and a layer too wide for the kernel."""


def random_pairs(samples: int, numbers: int, probes: int, shared: bool) -> tuple[Tensor, Tensor, Tensor]:
    x, left = torch.randn(samples, numbers).double(), torch.randn(probes, samples, numbers).double()
    return x, left, torch.randn(probes, 1 if shared else samples, numbers).double()


@pytest.mark.needs_extension
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", KERNEL_SIZES, ids=str)
def test_the_kernel_is_the_plain_formula(sizes, activation):
    """For any number of samples and probes."""
    field = dense(sizes, activation)
    for samples, probes, shared in ((1, 1, False), (6, 16, True), (7, 17, False), (61, 3, True), (3, 0, False)):
        given = random_pairs(samples, sizes[0], probes, shared)
        with torch.no_grad():
            exact = reference.field_trace(DENSE, activation, *given, *parameters(field))
            torch.testing.assert_close(field.contract(*given), exact, rtol=1e-9, atol=1e-9)
        given[0].requires_grad_()
        inputs, along = leaves(field, given[0]), [torch.randn_like(o) for o in exact]
        kernel, formula = (
            field.contract(*given),
            reference.field_trace(DENSE, activation, *given, *parameters(field)),
        )
        found, wanted = (torch.autograd.grad(o, inputs, along, materialize_grads=True) for o in (kernel, formula))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.needs_extension
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", KERNEL_SIZES, ids=str)
@torch.no_grad()
def test_the_kernel_is_as_exact_as_float32_allows(sizes, activation):
    """At most twice the error of the plain formula, plus what rounding the arguments once more makes."""
    field = dense(sizes, activation, torch.float32)
    layers = parameters(field)
    given = [t.float() for t in random_pairs(400, sizes[0], 3, False)]

    def formula(tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
        return reference.field_trace(DENSE, activation, *tensors)

    wide = [t.double() for t in (*given, *layers)]
    exact, plain = formula(wide), formula([*given, *layers])
    moved = formula([t * (1 + EPSILON * torch.randn_like(t).sign()) for t in wide])
    for ours, theirs, near, true in zip(field.contract(*given), plain, moved, exact, strict=True):
        assert ours.dtype == torch.float32
        floor = 2 * (near - true).abs().max() + 4 * EPSILON * true.abs().max()
        assert (ours - true).abs().max() <= 2 * (theirs - true).abs().max() + floor


@pytest.mark.needs_extension
@pytest.mark.parametrize("where", [(0,), (1, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("samples", [1, 6, 61])
def test_the_kernel_with_biases_of_each_sample(samples, where):
    field = dense((3, 17, 5, 20, 3), "swish")
    biases = [torch.randn(samples, len(b)).double() if i in where else b.detach() for i, b in enumerate(field.biases)]
    own = DenseField(field.weights, [bias.requires_grad_() for bias in biases], "swish")
    given = random_pairs(samples, 3, 4, False)
    given[0].requires_grad_()
    inputs = leaves(own, given[0])
    kernel, formula = own.contract(*given), reference.field_trace(DENSE, "swish", *given, *parameters(own))
    torch.testing.assert_close(kernel, formula, rtol=1e-9, atol=1e-9)
    along = [torch.randn_like(o) for o in formula]
    found, wanted = (torch.autograd.grad(o, inputs, along) for o in (kernel, formula))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.needs_extension
def test_the_kernel_on_one_and_two_threads_is_bitwise_the_same():
    field = dense((7, 20, 40, 7), dtype=torch.float32)
    x, noise = torch.randn(400, 7), torch.randn(3, 400, 7)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with torch.no_grad():
            value = *hutchinson_trace(field, x, probes=3, noise=noise), *field.power_products(x, noise, 3)
        found.append(
            [*value, *gradients(hutchinson_trace(field, x, probes=3, noise=noise), [*field.weights, *field.biases])]
        )
    torch.set_num_threads(1)
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.needs_extension
@pytest.mark.parametrize("sizes", KERNEL_SIZES, ids=str)
@torch.no_grad()
def test_the_kernel_of_power_products(sizes):
    """The plain formula, and in float32 as exact as that."""
    field, narrow = dense(sizes), dense(sizes, dtype=torch.float32)
    for samples, probes, count in ((1, 1, 1), (7, 17, 2), (13, 2, 5), (3, 0, 2)):
        x, vectors, _ = random_pairs(samples, sizes[0], probes, False)
        exact = reference.field_powers(DENSE, "tanh", count, x, vectors, *parameters(field))
        torch.testing.assert_close(field.power_products(x, vectors, count), exact, rtol=1e-9, atol=1e-9)
    given = [t.float() for t in random_pairs(100, sizes[0], 2, False)[:2]]
    layers = [t.float() for t in parameters(field)]
    true = reference.field_powers(DENSE, "tanh", 3, *(t.double() for t in (*given, *layers)))
    plain = reference.field_powers(DENSE, "tanh", 3, *given, *layers)
    for ours, theirs, right in zip(narrow.power_products(*given, 3), plain, true, strict=True):
        floor = 16 * EPSILON * right.abs().max()
        assert (ours - right).abs().max() <= 2 * (theirs - right).abs().max() + floor


@pytest.mark.needs_extension
@pytest.mark.parametrize("own", [False, True], ids=["shared biases", "own biases"])
def test_opcheck_of_the_kernels(own):
    x, left, right = (t.float() for t in random_pairs(7, 4, 3, True))
    layers = [t.detach() for t in parameters(dense((4, 6, 5, 4), dtype=torch.float32))]
    if own:
        layers[1] = torch.randn(7, 6)
    for keep in (False, True):
        given = (x, left, right, layers)
        # what is kept has holes, so that it is not compared with what another call keeps
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        checks += () if keep else ("test_aot_dispatch_dynamic",)
        torch.library.opcheck(torch.ops.fastgen.dense_trace.default, (0, keep, *given), test_utils=checks)
        kept = torch.ops.fastgen.dense_trace(0, keep, *given)[2]
        backward = (0, torch.randn(7, 4), torch.randn(7), kept, *given)
        torch.library.opcheck(torch.ops.fastgen.dense_trace_backward.default, backward)
    torch.library.opcheck(torch.ops.fastgen.dense_powers.default, (0, 3, x, left, layers))


@pytest.mark.needs_extension
@pytest.mark.parametrize(("samples", "probes"), [(1, 1), (13, 3), (50, 16), (13, 37)])
def test_the_gradient_is_the_same_with_and_without_what_was_kept(samples, probes):
    x, left, right = (t.float() for t in random_pairs(samples, 7, probes, True))
    layers = [t.detach() for t in parameters(dense((7, 20, 5, 33, 7), dtype=torch.float32))]
    given = (x, left, right, layers)
    gradients = torch.randn(samples, 7), torch.randn(samples)
    *_, kept = torch.ops.fastgen.dense_trace(0, True, *given)
    ours = torch.ops.fastgen.dense_trace_backward(0, *gradients, kept, *given)
    again = torch.ops.fastgen.dense_trace_backward(0, *gradients, x.new_empty(0), *given)
    assert all(torch.equal(one, other) for one, other in zip(ours, again, strict=True))


@pytest.mark.needs_extension
def test_a_large_batch_and_few_probes_keep_nothing(monkeypatch):
    x, field = torch.randn(6, 8), dense((8, 6, 5, 8), dtype=torch.float32)

    def kept(probes: int) -> int:
        _, trace = hutchinson_trace(field, x, probes=probes)
        return trace.grad_fn.next_functions[0][0].saved_tensors[-1].numel()

    assert kept(5) > 0
    assert kept(2) == 0
    monkeypatch.setattr("fastgen.ops.field._KEPT", 0)
    assert kept(5) == 0


def test_a_forced_reference_is_obeyed():
    field, x = dense((4, 6, 5, 4)), torch.randn(5, 4, dtype=torch.float64)
    with torch.no_grad():
        wanted = hutchinson_trace(field, x, probes=2)
        with fastgen.backend("reference"):
            torch.testing.assert_close(hutchinson_trace(field, x, probes=2), wanted)


@pytest.mark.needs_extension
@pytest.mark.parametrize("size", [-80.0, 80.0, 1e4])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_extreme_activations_are_as_the_formula_has_them(activation, size):
    field = DenseField([torch.full((3, 2), size), torch.ones(2, 3)], [torch.zeros(3), torch.zeros(2)], activation)
    x, ones = torch.ones(4, 2), torch.ones(1, 4, 2)
    with torch.no_grad():
        found = field.contract(x, ones, ones)
    wanted = reference.field_trace(DENSE, activation, x, ones, ones, *parameters(field))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_float32_is_as_exact_as_the_plain_formula(sizes, activation):
    """At most twice its error, and the rounding of the result."""
    field, wide = dense(sizes, activation, torch.float32), dense(sizes, activation, torch.float32)
    wide = DenseField(
        [w.detach().double() for w in wide.weights], [b.detach().double() for b in wide.biases], activation
    )
    for tensor in (*wide.weights, *wide.biases):
        tensor.requires_grad_()
    x = torch.randn(300, sizes[0])
    noise = torch.randn(2, 300, sizes[0])

    def results(f, field, dtype):
        given = x.to(dtype).requires_grad_()
        outputs = hutchinson_trace(f, given, probes=2, noise=noise.to(dtype))
        return [*outputs, *gradients(outputs, leaves(field, given))]

    exact = results(lambda x: wide(x), wide, torch.float64)
    plain = results(lambda x: field(x), field, torch.float32)
    for mine, theirs, true in zip(results(field, field, torch.float32), plain, exact, strict=True):
        assert mine.dtype == torch.float32
        floor = 16 * EPSILON * true.abs().max()
        assert (mine - true).abs().max() <= 2 * (theirs - true).abs().max() + floor


def test_autocast_leaves_a_dense_field_in_float32():
    field, x = dense((3, 4, 5, 3), dtype=torch.float32), torch.randn(5, 3)
    wanted = hutchinson_trace(field, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = hutchinson_trace(field, x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_strided_arguments():
    field = dense((4, 6, 5, 4))
    strided = DenseField([w.detach().t().contiguous().t() for w in field.weights], field.biases, "tanh")
    x = torch.randn(4, 7, dtype=torch.float64).t()
    noise = torch.randn(4, 7, 3, dtype=torch.float64).permute(2, 1, 0)
    found = hutchinson_trace(strided, x, noise=noise, probes=3)
    torch.testing.assert_close(found, hutchinson_trace(field, x.contiguous(), noise=noise.contiguous(), probes=3))


@pytest.mark.parametrize(
    ("weights", "biases", "activation", "words"),
    [
        ([(3, 2), (2, 3)], [3, 2], "relu", "activation must .*, got 'relu'"),
        ([(2, 2)], [2], "tanh", "at least 2"),
        ([(3, 2), (2, 3)], [3], "tanh", r"weights and biases must have equally.*, got 2 and 1"),
        ([(3, 2), (2, 4)], [3, 2], "tanh", r"weights\[1\] and biases\[1\] must have.*, got \(2, 4\) and \(2,\)"),
        ([(3, 2), (2, 3)], [3, 3], "tanh", r"weights\[1\] and biases\[1\] must have.*, got \(2, 3\) and \(3,\)"),
        ([(3, 2), (2, 3)], [(5, 2), 2], "tanh", r"weights\[0\] and biases\[0\] must have.*, got \(3, 2\) and \(5, 2\)"),
        ([(3, 2), (3, 3)], [3, 3], "tanh", r"the last of weights must have 2.*, got 3"),
    ],
)
def test_wrong_layers_are_named(weights, biases, activation, words):
    with pytest.raises(ValueError, match=words):
        DenseField([torch.zeros(s) for s in weights], [torch.zeros(s) for s in biases], activation)


def test_biases_of_other_samples_are_named():
    field = DenseField([torch.zeros(3, 2), torch.zeros(2, 3)], [torch.zeros(4, 3), torch.zeros(2)], "tanh")
    with pytest.raises(ValueError, match=r"biases\[0\] must have 1 row or .*, got 4"):
        hutchinson_trace(field, torch.zeros(5, 2))
