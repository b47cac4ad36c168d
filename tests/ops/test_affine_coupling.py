from __future__ import annotations

import math

import pytest
import torch

import fastgen
from fastgen.ops import affine_coupling, affine_coupling_
from fastgen.reference.affine_coupling import CASES

BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.needs_extension)]
EPSILON = torch.finfo(torch.float32).eps


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_inverse_after_forward_is_the_identity_and_the_log_determinants_cancel(name, backend):
    given = CASES[name](torch.Generator().manual_seed(0))
    given = {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in given.items()}
    with fastgen.backend(backend):
        y, log_det = affine_coupling(**given)
        back, back_log_det = affine_coupling(**given | {"x": y, "inverse": not given["inverse"]})
    torch.testing.assert_close(back, given["x"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(back_log_det, -log_det)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_over_its_input_is_the_same(name, backend):
    given = CASES[name](torch.Generator().manual_seed(0))
    with fastgen.backend(backend):
        wanted, wanted_log_det = affine_coupling(**given)
        y, log_det = affine_coupling_(**given)
    assert y is given["x"]
    assert torch.equal(y, wanted)
    assert torch.equal(log_det, wanted_log_det)


@pytest.mark.interpreter
@pytest.mark.parametrize("name", CASES)
def test_triton_over_its_input_is_the_same(name):
    given = CASES[name](torch.Generator().manual_seed(0))
    with fastgen.backend("triton-interpret"):
        wanted, _ = affine_coupling(**given)
        assert torch.equal(affine_coupling_(**given)[0], wanted)


def test_over_strided_and_half_precision_inputs():
    parameters = torch.randn(4, 6)
    for x in (torch.randn(3, 4).t(), torch.randn(4, 3).bfloat16()):
        wanted, _ = affine_coupling(x, parameters)
        assert affine_coupling_(x, parameters)[0] is x
        assert torch.equal(x, wanted)


@pytest.mark.needs_extension
def test_opcheck_of_the_form_that_overwrites():
    op = torch.ops.fastgen.affine_coupling_.default
    torch.library.opcheck(op, (torch.randn(3, 2), torch.randn(3, 4), torch.ones(2), None, False, 0, False))


def test_the_form_that_overwrites_refuses_gradients():
    x, parameters = torch.randn(3, 2), torch.randn(3, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="use affine_coupling"):
        affine_coupling_(x, parameters)
    with torch.no_grad():
        affine_coupling_(x, parameters)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("how", ["exp", "tanh", "sigmoid"])
@pytest.mark.parametrize("size", [-80.0, 80.0, -200.0, 200.0])
def test_extreme_scales_are_right_or_infinite_as_the_formula_is(size, how, inverse, backend):
    x, shift = torch.randn(3, 40), torch.randn(3, 40)
    given = {"parameterisation": how, "inverse": inverse, "scale": abs(size)}
    with fastgen.backend(backend):
        y, log_det = affine_coupling(x, torch.cat([shift, torch.full_like(x, size)], 1), **given)
        wide, wide_log_det = affine_coupling(x.double(), torch.cat([shift, torch.full_like(x, size)], 1), **given)
    assert not y.isnan().any()
    torch.testing.assert_close(log_det, wide_log_det.float(), rtol=4 * EPSILON, atol=EPSILON)
    torch.testing.assert_close(y, wide.float(), rtol=200 * EPSILON, atol=torch.finfo(torch.float32).tiny)


@pytest.mark.needs_extension
def test_the_log_determinant_of_many_elements_is_summed_to_the_last_place():
    raw = torch.rand(2, 1_000_003) + 1e4
    _, log_det = affine_coupling(torch.zeros_like(raw), torch.cat([raw, -raw], 1))
    wanted = [-math.fsum(row.tolist()) for row in raw]
    torch.testing.assert_close(log_det.double(), torch.tensor(wanted, dtype=torch.float64), rtol=EPSILON, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_the_expanded_gradient_of_a_sum_is_used_as_the_dense_one(name, backend):
    given = CASES[name](torch.Generator().manual_seed(0))
    tensors = [given["x"].requires_grad_(), given["parameters"].requires_grad_()]
    with fastgen.backend(backend):
        y, log_det = affine_coupling(**given)
        one = torch.tensor(0.7).expand(y.shape)
        expanded, dense = (
            torch.autograd.grad((y, log_det), tensors, (of_y, torch.ones_like(log_det)), retain_graph=True)
            for of_y in (one, one.contiguous())
        )
    for found, wanted in zip(expanded, dense, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_of_kept_elements_are_not_used(backend):
    x, mask = torch.randn(2, 6), torch.tensor([1, 0, 1, 0, 0, 1])
    parameters = torch.randn(2, 12)
    parameters[:, torch.cat([mask, mask]) == 1] = float("nan")
    parameters.requires_grad_()
    with fastgen.backend(backend):
        y, log_det = affine_coupling(x, parameters, mask=mask)
        (grad,) = torch.autograd.grad(y.sum() + log_det.sum(), parameters)
    assert torch.equal(y[:, mask == 1], x[:, mask == 1])
    assert torch.isfinite(log_det).all()
    assert (grad[:, torch.cat([mask, mask]) == 1] == 0).all()


def test_halves_and_interleaved_are_one_another_with_the_channels_in_another_order():
    x, parameters = torch.randn(3, 4, 5), torch.randn(3, 8, 5)
    halves = torch.cat([parameters[:, 0::2], parameters[:, 1::2]], 1)
    for mine, theirs in zip(affine_coupling(x, parameters, interleaved=True), affine_coupling(x, halves), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"parameterisation": "softplus"}, ValueError, "parameterisation must .*, got 'softplus'"),
        ({"x": torch.zeros(3, 2, dtype=torch.int64)}, TypeError, "x must be floating point"),
        ({"x": torch.zeros(3)}, ValueError, "x must have shape"),
        ({"parameters": torch.zeros(3, 2)}, ValueError, r"parameters must have shape .*\(3, 4\).*, got \(3, 2\)"),
        ({"scale": torch.ones(3)}, ValueError, r"scale must be a number or have shape.*, got shape \(3,\)"),
        ({"mask": torch.ones(3)}, ValueError, r"mask must broadcast to \(2,\), the.*, got shape \(3,\)"),
    ],
)
@pytest.mark.parametrize("function", [affine_coupling, affine_coupling_])
def test_wrong_arguments_are_named(function, changed, error, words):
    with pytest.raises(error, match=words):
        function(**{"x": torch.zeros(3, 2), "parameters": torch.zeros(3, 4)} | changed)
