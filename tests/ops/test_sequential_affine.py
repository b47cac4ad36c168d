from __future__ import annotations

import math

import pytest
import torch

import fastgen
from fastgen.ops.sequential_affine import sequential_affine
from fastgen.reference.sequential_affine import (
    ACTIVATIONS,
    CASES,
    PARAMETERISATIONS,
    cyclic_degrees,
    layer_sizes,
    masks_of,
    parallel,
    parameter_count,
)

BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.needs_extension)]
EPSILON = torch.finfo(torch.float32).eps


def case(name: str, dtype: torch.dtype = torch.float64) -> dict:
    given = CASES[name](torch.Generator().manual_seed(0))
    return {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in given.items()}


def masked_network(given: dict, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Shift and raw scale of every feature at x, in one parallel pass."""
    widths, hidden, start = [len(d) for d in given["degrees"]], x, 0
    for i, ((before, after), mask) in enumerate(zip(layer_sizes(widths), masks_of(given["degrees"]), strict=True)):
        weight = given["parameters"][start : start + before * after].reshape(after, before)
        start += before * after + after
        if i:
            hidden = ACTIVATIONS[given["activation"]](hidden)
        hidden = hidden @ torch.where(mask, weight, 0).t() + given["parameters"][start - after : start]
        if i == 0 and "context" in given:
            hidden = hidden + given["context"]
    return hidden.chunk(2, -1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_the_parallel_pass_takes_it_back_and_the_log_determinants_cancel(name, backend):
    given = case(name)
    with fastgen.backend(backend):
        x, log_det = sequential_affine(**given)
    number = PARAMETERISATIONS.index(given["parameterisation"])
    u, back_log_det = parallel(x, *masked_network(given, x), number, 1e-3, math.log(1e3))
    torch.testing.assert_close(u, given["u"], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(back_log_det, -log_det)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["small", "small sigmoid", "one hidden unit", "random degrees", "large"])
def test_the_log_determinant_is_that_of_the_jacobian_which_is_triangular_in_the_order_of_the_degrees(name, backend):
    given = case(name)
    order = given["degrees"][0].argsort()
    with fastgen.backend(backend):
        _, log_det = sequential_affine(**given)
        jacobians = torch.autograd.functional.jacobian(
            lambda u: sequential_affine(**given | {"u": u})[0].sum(0), given["u"]
        ).transpose(0, 1)
    torch.testing.assert_close(torch.linalg.slogdet(jacobians)[1], log_det)
    assert (jacobians[:, order][:, :, order].triu(1) == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_feature_changes_nothing_before_it_in_the_order(backend):
    given = case("random degrees", torch.float32)
    order = given["degrees"][0].argsort()
    with fastgen.backend(backend):
        before = sequential_affine(**given)[0]
        for place, feature in enumerate(order):
            u = given["u"].clone()
            u[:, feature] += 1
            after = sequential_affine(**given | {"u": u})[0]
            assert torch.equal(after[:, order[:place]], before[:, order[:place]])
            assert (after[:, feature] != before[:, feature]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_weights_are_not_used_and_get_no_gradient(backend):
    given = case("random degrees")
    widths = [len(d) for d in given["degrees"]]
    parts = [
        part
        for (_, after), mask in zip(layer_sizes(widths), masks_of(given["degrees"]), strict=True)
        for part in (mask.flatten(), torch.ones(after, dtype=torch.bool))
    ]
    used = torch.cat(parts)
    spoiled = given["parameters"].masked_fill(~used, float("nan")).requires_grad_()
    with fastgen.backend(backend):
        wanted = sequential_affine(**given)
        found = sequential_affine(**given | {"parameters": spoiled})
        (grad,) = torch.autograd.grad(found[0].sum() + found[1].sum(), spoiled)
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.equal(mine, theirs)
    assert (grad[~used] == 0).all()
    assert torch.isfinite(grad).all()


@pytest.mark.needs_extension
@pytest.mark.parametrize("name", ["more than a panel", "three layers", "many features"])
def test_a_sample_does_not_depend_on_its_neighbours(name):
    given = case(name, torch.float32)
    together = sequential_affine(**given)
    for n in range(len(given["u"])):
        alone = {k: given[k][n : n + 1] for k in ("u", "context") if k in given}
        for mine, theirs in zip(sequential_affine(**given | alone), together, strict=True):
            assert torch.equal(mine[0], theirs[n])


@pytest.mark.needs_extension
def test_gradients_of_more_samples_than_are_summed_at_once():
    given = case("three layers")
    given["u"] = torch.randn(601, 9, dtype=torch.float64)
    found = []
    for backend in ("cpu", "reference"):
        with fastgen.backend(backend):
            tensors = [given[k].detach().requires_grad_() for k in ("u", "parameters")]
            x, log_det = sequential_affine(**given | dict(zip(("u", "parameters"), tensors, strict=True)))
            found.append(torch.autograd.grad(x.sin().sum() + log_det.cos().sum(), tensors))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", PARAMETERISATIONS)
@pytest.mark.parametrize("size", [-80.0, 80.0])
def test_large_raw_scales_are_right(size, how, backend):
    """The network is constant: zero weights, the raw scale as bias."""
    parameters = torch.cat([torch.zeros(parameter_count([3, 4]) - 3), torch.full((3,), size)])
    given = {"parameters": parameters, "degrees": [torch.arange(3) + 1, torch.zeros(4, dtype=torch.int64)]}
    u = torch.randn(5, 3)
    with fastgen.backend(backend):
        x, log_det = sequential_affine(u, **given, parameterisation=how)
        wide, wide_log_det = sequential_affine(u.double(), **given, parameterisation=how)
    torch.testing.assert_close(x, wide.float(), rtol=200 * EPSILON, atol=torch.finfo(torch.float32).tiny)
    torch.testing.assert_close(log_det, wide_log_det.float(), rtol=8 * EPSILON, atol=3 * EPSILON)


def test_a_list_of_weights_and_biases_is_the_flat_vector():
    given = case("three layers")
    widths = [len(d) for d in given["degrees"]]
    sizes = [n for before, after in layer_sizes(widths) for n in (before * after, after)]
    shapes = [shape for before, after in layer_sizes(widths) for shape in ((after, before), (after,))]
    parts = [p.reshape(shape) for p, shape in zip(given["parameters"].split(sizes), shapes, strict=True)]
    for mine, theirs in zip(
        sequential_affine(**given | {"parameters": parts}), sequential_affine(**given), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_degrees_of_a_layer_by_default():
    assert cyclic_degrees(4, 5).tolist() == [1, 2, 3, 1, 2]
    assert cyclic_degrees(1, 2).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"activation": "gelu"}, ValueError, "activation is 'gelu'"),
        ({"parameterisation": "tanh"}, ValueError, "parameterisation is 'tanh'"),
        ({"min_scale": -1.0}, ValueError, "min_scale is -1.0"),
        ({"bound": 0.0}, ValueError, "bound is 0.0"),
        ({"u": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "u has dtype"),
        ({"u": torch.zeros(3)}, ValueError, "u has shape"),
        ({"u": torch.zeros(2, 4)}, ValueError, r"degrees\[0\] has shape"),
        ({"parameters": torch.zeros(7)}, ValueError, "parameters has shape"),
        ({"parameters": [torch.zeros(4, 3)]}, ValueError, "parameters have shapes"),
        ({"context": torch.zeros(2, 3)}, ValueError, "context has shape"),
        ({"degrees": [torch.arange(3) + 1]}, ValueError, "degrees has 1 tensors"),
        ({"degrees": [torch.arange(3), torch.zeros(4, dtype=torch.int64)]}, ValueError, "every number from 1 to 3"),
        ({"degrees": [torch.arange(3) + 1, torch.full((4,), 5)]}, ValueError, r"degrees\[1\] reaches from 5 to 5"),
        ({"degrees": [torch.arange(3) + 1, torch.zeros(4)]}, TypeError, r"degrees\[1\] has dtype"),
    ],
)
def test_wrong_arguments_are_named(changed, error, words):
    given = {
        "u": torch.zeros(2, 3),
        "parameters": torch.zeros(parameter_count([3, 4])),
        "degrees": [torch.arange(3) + 1, torch.ones(4, dtype=torch.int64)],
    }
    with pytest.raises(error, match=words):
        sequential_affine(**given | changed)


@pytest.mark.needs_extension
def test_the_kernel_refuses_degrees_that_would_lead_it_astray():
    for degrees in ([1, 1, 1], [0, 1, 1], [1, 2, 3], [1, 2, -1]):
        given = torch.zeros(1, 2), torch.zeros(1, 1), torch.zeros(parameter_count([2, 1])), torch.tensor(degrees)
        with pytest.raises(RuntimeError, match="degrees"):
            torch.ops.fastgen.sequential_affine(*given, [2, 1], 0, 0, 1e-3, 1.0)
