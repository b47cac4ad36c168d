from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.ops import ConvField, hutchinson_trace
from fastgen.reference.hutchinson_trace import ACTIVATIONS
from tests.ops.fields import convolutional, gradients, jacobian, leaves

EPSILON = torch.finfo(torch.float32).eps


def image(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_a_row_of_convolutions(activation):
    """The channel of ones that the borders weigh is one more of PyTorch's input."""
    field, x = convolutional(activation=activation), image(3, 2, 4, 5)
    ones, h = torch.ones(3, 1, 4, 5, dtype=torch.float64), x
    for i, (weight, bias, border) in enumerate(zip(field.weights, field.biases, field.borders, strict=True)):
        both = torch.cat([weight, border], 1)
        h = F.conv2d(torch.cat([h, ones], 1), both, bias, padding="same")
        h = ACTIVATIONS[activation](h) if i < 2 else h
    torch.testing.assert_close(field(x), h)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "hutch++", "exact"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", [(4, 5), (1, 3)], ids=str)
def test_a_field_given_as_such_and_as_a_callable_agree(size, activation, kind):
    field = convolutional(activation=activation)
    x = image(3, 2, *size).requires_grad_()
    inputs = leaves(field, x)
    for probes in (3, 7):
        fast, slow = (hutchinson_trace(f, x, probes=probes, kind=kind, seed=5) for f in (field, lambda x: field(x)))
        torch.testing.assert_close(fast, slow)
        torch.testing.assert_close(gradients(fast, inputs), gradients(slow, inputs))
        with torch.no_grad():
            silent = hutchinson_trace(field, x, probes=probes, kind=kind, seed=5)
        torch.testing.assert_close(silent, tuple(o.detach() for o in fast))
        assert not any(o.requires_grad for o in silent)
    if kind == "exact":
        torch.testing.assert_close(fast[1], jacobian(field, x).diagonal(dim1=1, dim2=2).sum(1))


@pytest.mark.parametrize("probes", [1, 3])
def test_noise_shared_in_the_batch(probes):
    field, x, noise = convolutional(), image(4, 2, 3, 3).requires_grad_(), image(probes, 1, 2, 3, 3)
    fast, slow = (
        hutchinson_trace(field, x, probes=probes, noise=n)
        for n in (noise, noise.expand(-1, 4, -1, -1, -1).contiguous())
    )
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(gradients(fast, leaves(field, x)), gradients(slow, leaves(field, x)))


def test_biases_of_each_sample():
    field, x = convolutional(), image(3, 2, 4, 3).requires_grad_()
    own = image(3, 3, 1, 1).requires_grad_()
    biases = [own, *field.biases[1:]]
    both = ConvField(field.weights, biases, "tanh", field.borders)
    each = [ConvField(field.weights, [own[n].flatten(), *biases[1:]], "tanh", field.borders) for n in range(3)]
    found = hutchinson_trace(both, x, seed=4)
    parts = [hutchinson_trace(one, x[n : n + 1], seed=4, offset=n) for n, one in enumerate(each)]
    wanted = tuple(torch.cat(part) for part in zip(*parts, strict=True))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradients(found, leaves(both, x)), gradients(wanted, leaves(both, x)))


@pytest.mark.parametrize("kind", ["rademacher", "exact"])
def test_gradcheck_and_gradgradcheck(kind):
    field = convolutional((1, 2, 1), ((3, 3), (1, 3)))
    x = image(2, 1, 2, 2).requires_grad_()

    def function(x, *tensors):
        return hutchinson_trace(ConvField(tensors[:2], tensors[2:4], "tanh", tensors[4:]), x, kind=kind)

    assert torch.autograd.gradcheck(function, leaves(field, x))
    assert torch.autograd.gradgradcheck(function, leaves(field, x))


@pytest.mark.parametrize("trained", ["x", "parameters"])
def test_what_needs_no_gradient_gets_none_and_changes_nothing(trained):
    field, x = convolutional(), image(3, 2, 4, 4).requires_grad_(trained == "x")
    others = leaves(field, x)[1:]
    for tensor in others:
        tensor.requires_grad_(trained == "parameters")
    inputs = [x] if trained == "x" else others
    fast, slow = (hutchinson_trace(f, x, probes=2) for f in (field, lambda x: field(x)))
    torch.testing.assert_close(gradients(fast, inputs), gradients(slow, inputs))


@pytest.mark.parametrize("probes", [(), (3,)], ids=["one vector", "several"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_power_products_are_those_of_the_jacobian(activation, probes):
    field, x = convolutional(activation=activation), image(3, 2, 3, 4)
    vectors = image(*probes, 3, 2, 3, 4)
    y, terms = field.power_products(x, vectors, 3)
    torch.testing.assert_close(y, field(x).detach())
    assert not y.requires_grad
    wanted, matrices = vectors.flatten(-3), jacobian(field, x)
    for term in terms:
        wanted = torch.einsum("...ni,nij->...nj", wanted, matrices)
        torch.testing.assert_close(term.flatten(-3), wanted)


def test_torch_func():
    field, x = convolutional(), image(3, 2, 3, 4)

    def total(x):
        y, trace = hutchinson_trace(field, x, probes=2, seed=3)
        return y.sum() + (trace * trace).sum()

    tracked = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(total(tracked), tracked)
    torch.testing.assert_close(torch.func.grad(total)(x), wanted)
    tangent = torch.randn_like(x)
    torch.testing.assert_close(torch.func.jvp(total, (x,), (tangent,))[1], (wanted * tangent).sum())


def test_it_compiles_without_a_graph_break():
    layers, x = nn.ModuleList([nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 3)]), image(3, 2, 4, 4, dtype=torch.float32)

    def total(x):
        field = ConvField([m.weight for m in layers], [m.bias for m in layers], "softplus")
        y, trace = hutchinson_trace(field, x, probes=2)
        return y.sum() + trace.square().sum()

    found = []
    for function in (total, torch.compile(total, fullgraph=True, backend="aot_eager")):
        value = function(x)
        found.append([value.detach(), *torch.autograd.grad(value, layers.parameters())])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float32_is_as_exact_as_the_plain_formula(activation):
    """At most twice its error, and the rounding of the result."""
    narrow = convolutional((3, 16, 16, 3), ((3, 3),) * 3, activation, torch.float32)
    wide = convolutional((3, 16, 16, 3), ((3, 3),) * 3, activation)
    with torch.no_grad():
        for one, other in zip(leaves(wide, image(1))[1:], leaves(narrow, image(1))[1:], strict=True):
            one.copy_(other)
    given, noise = image(20, 3, 6, 7, dtype=torch.float32), image(2, 20, 3, 6, 7, dtype=torch.float32)

    def results(f, field, dtype):
        x = given.to(dtype).requires_grad_()
        outputs = hutchinson_trace(f, x, probes=2, noise=noise.to(dtype))
        return [*outputs, *gradients(outputs, leaves(field, x))]

    exact = results(lambda x: wide(x), wide, torch.float64)
    plain = results(lambda x: narrow(x), narrow, torch.float32)
    for mine, theirs, true in zip(results(narrow, narrow, torch.float32), plain, exact, strict=True):
        assert mine.dtype == torch.float32
        floor = 16 * EPSILON * true.abs().max()
        assert (mine - true).abs().max() <= 2 * (theirs - true).abs().max() + floor


def test_half_precision_and_autocast_have_their_trace_in_float32():
    half, x = convolutional(dtype=torch.bfloat16), image(3, 2, 4, 4)
    y, trace = hutchinson_trace(half, x.bfloat16())
    assert (y.dtype, trace.dtype) == (torch.bfloat16, torch.float32)
    single, x = convolutional(dtype=torch.float32), x.float()
    wanted = hutchinson_trace(single, x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(hutchinson_trace(single, x), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["rademacher", "hutch++", "exact"])
def test_no_samples(kind):
    field, x = convolutional(), image(0, 2, 3, 3).requires_grad_()
    y, trace = hutchinson_trace(field, x, kind=kind, probes=3)
    assert (y.shape, trace.shape) == (x.shape, (0,))
    for tensor, gradient in zip(leaves(field, x), gradients((y, trace), leaves(field, x)), strict=True):
        assert gradient.shape == tensor.shape
        assert (gradient == 0).all()


def test_strided_arguments():
    field, x, noise = (
        convolutional(),
        image(4, 5, 2, 3).permute(3, 2, 0, 1),
        image(4, 5, 2, 3, 2).permute(4, 3, 2, 0, 1),
    )
    found = hutchinson_trace(field, x, noise=noise, probes=2)
    torch.testing.assert_close(found, hutchinson_trace(field, x.contiguous(), noise=noise.contiguous(), probes=2))


def test_what_it_does_not_take_is_named():
    field = convolutional()
    with pytest.raises(ValueError, match=r"x must have shape \[N, 2, H, W\], got \(3, 2\)"):
        hutchinson_trace(field, torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"x must have shape .*, got \(3, 4, 5, 5\)"):
        field(torch.zeros(3, 4, 5, 5))
    with pytest.raises(
        ValueError,
        match=r"kind must be 'exact' for.*, got 'closed-form', which is of dense fields of one or two hidden layers",
    ):
        hutchinson_trace(field, torch.zeros(3, 2, 4, 4), kind="closed-form")
    with pytest.raises(ValueError, match=r"biases\[0\] must have 1 row or .*, got 2"):
        ConvField(field.weights, [torch.zeros(2, 3, 1, 1), *field.biases[1:]], "tanh")(torch.zeros(3, 2, 4, 4))


@pytest.mark.parametrize(
    ("weights", "biases", "borders", "words"),
    [
        (
            [(3, 2, 3, 3), (2, 3, 2, 3)],
            [3, 2],
            None,
            r"weights\[1\] and biases\[1\] must have.*, got \(2, 3, 2, 3\) and \(2,\)",
        ),
        (
            [(3, 2, 3, 3), (2, 4, 3, 3)],
            [3, 2],
            None,
            r"weights\[1\] and biases\[1\] must have.*, got \(2, 4, 3, 3\) and \(2,\)",
        ),
        ([(3, 2), (2, 3)], [3, 2], None, r"weights\[0\] and biases\[0\] must have.*, got \(3, 2\) and \(3,\)"),
        ([(3, 2, 3, 3), (3, 3, 3, 3)], [3, 3], None, r"the last of weights must have 2.*, got 3"),
        (
            [(3, 2, 3, 3), (2, 3, 1, 1)],
            [(5, 2, 1, 1), 2],
            None,
            r"weights\[0\] and biases\[0\] must have.*, got \(3, 2, 3, 3\) and \(5, 2, 1, 1\)",
        ),
        (
            [(3, 2, 3, 3), (2, 3, 1, 1)],
            [3, 2],
            [(3, 1, 3, 3)],
            r"borders must have shapes \(3, 1, 3,.*, got \(3, 1, 3, 3\)",
        ),
    ],
)
def test_wrong_layers_are_named(weights, biases, borders, words):
    zeros = [None if given is None else [torch.zeros(s) for s in given] for given in (weights, biases, borders)]
    with pytest.raises(ValueError, match=words):
        ConvField(*zeros[:2], "tanh", zeros[2])
