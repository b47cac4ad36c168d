from __future__ import annotations

import math

import pytest
import torch

import fastgen
from fastgen.ops.sequential_affine import OP, sequential_affine
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
from tests.ops.test_contract import check_precision, differentiated

BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.needs_extension)]
TRITON = pytest.param("triton-interpret", marks=pytest.mark.interpreter)
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


def used_parameters(degrees: list[torch.Tensor]) -> torch.Tensor:
    """Which of the flat parameters the masks leave."""
    masks = masks_of(degrees)
    return torch.cat([part for mask in masks for part in (mask.flatten(), torch.ones(len(mask), dtype=torch.bool))])


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
    used = used_parameters(given["degrees"])
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


@pytest.mark.parametrize("backend", [*BACKENDS, TRITON])
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


def network(samples: int, *widths: int) -> dict:
    features, *hidden = widths
    degrees = [torch.randperm(features) + 1, *(torch.randint(0, features + 1, (h,)) for h in hidden)]
    parameters = torch.randn(parameter_count(widths)) / max(widths) ** 0.5
    return {"u": torch.randn(samples, features), "parameters": parameters, "degrees": degrees}


@pytest.mark.interpreter
@pytest.mark.parametrize("widths", [(1, 1), (15, 2), (16, 40), (17, 1, 5)], ids=str)
def test_triton_is_taken_back_by_the_parallel_pass(widths):
    """With fewer and more degrees and units than it takes at once."""
    given = network(17, *widths)
    with fastgen.backend("triton-interpret"):
        x, log_det = sequential_affine(**given)
    shift, raw = masked_network(given | {"activation": "relu"}, x)
    torch.testing.assert_close((x - shift) * (-raw).exp(), given["u"])
    torch.testing.assert_close(raw.sum(1), log_det)


@pytest.mark.interpreter
@pytest.mark.parametrize(("activation", "how"), list(zip(ACTIVATIONS, PARAMETERISATIONS, strict=True)))
def test_triton_has_every_activation_and_parameterisation(activation, how):
    def make(generator: torch.Generator) -> dict:
        degrees = [torch.arange(2) + 1, torch.arange(3)]
        numbers = torch.randn(parameter_count([2, 3]), generator=generator)
        given = {"u": torch.randn(2, 2, generator=generator), "parameters": numbers, "degrees": degrees}
        return given | {"activation": activation, "parameterisation": how}

    check_precision(OP, make, "triton-interpret")


@pytest.mark.interpreter
def test_triton_does_not_use_masked_weights_and_gives_them_no_gradient():
    given = network(3, 5, 9, 7)
    used = used_parameters(given["degrees"])
    plain = given["parameters"].requires_grad_()
    spoiled = plain.detach().masked_fill(~used, float("nan")).requires_grad_()
    with fastgen.backend("triton-interpret"):
        wanted, found = differentiated(OP, given), differentiated(OP, given | {"parameters": spoiled})
    for mine, theirs in zip(found[0] + found[1], wanted[0] + wanted[1], strict=True):
        assert torch.equal(mine, theirs)
    assert (found[1][1][~used] == 0).all()


@pytest.mark.interpreter
def test_triton_samples_do_not_depend_on_their_neighbours():
    given = network(18, 4, 9) | {"activation": "tanh"}
    with fastgen.backend("triton-interpret"):
        together = sequential_affine(**given)
        for n in (0, 15, 17):
            alone = sequential_affine(**given | {"u": given["u"][n : n + 1]})
            for mine, theirs in zip(alone, together, strict=True):
                assert torch.equal(mine[0], theirs[n])


@pytest.mark.interpreter
def test_triton_takes_strided_arguments():
    given = network(17, 5, 9) | {"context": torch.randn(17, 9), "activation": "elu"}
    strided = given | {name: given[name].t().contiguous().t() for name in ("u", "context")}
    strided |= {"parameters": given["parameters"].repeat_interleave(2)[::2]}
    with fastgen.backend("triton-interpret"):
        torch.testing.assert_close(differentiated(OP, strided), differentiated(OP, given))


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
    assert cyclic_degrees(4, 5, 1).tolist() == [1, 2, 3, 1, 2]
    assert cyclic_degrees(4, 5, 0).tolist() == [0, 1, 2, 3, 0]
    assert cyclic_degrees(1, 2, 0).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"activation": "gelu"}, ValueError, "activation must .*, got 'gelu'"),
        ({"parameterisation": "tanh"}, ValueError, "parameterisation must .*, got 'tanh'"),
        ({"min_scale": -1.0}, ValueError, "min_scale must .*, got -1.0"),
        ({"bound": 0.0}, ValueError, "bound must .*, got 0.0"),
        ({"u": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "u must be floating point"),
        ({"u": torch.zeros(3)}, ValueError, "u must have shape"),
        ({"u": torch.zeros(2, 4)}, ValueError, r"degrees\[0\] must have shape"),
        ({"parameters": torch.zeros(7)}, ValueError, "parameters must have shape"),
        (
            {"parameters": [torch.zeros(4, 3)]},
            ValueError,
            r"parameters must have shapes \[\(4, 3\),.*, got \[\(4, 3\)\]",
        ),
        ({"context": torch.zeros(2, 3)}, ValueError, "context must have shape"),
        ({"degrees": [torch.arange(3) + 1]}, ValueError, r"degrees must have a tensor for the.*, got 1 tensors"),
        ({"degrees": [torch.arange(3), torch.zeros(4, dtype=torch.int64)]}, ValueError, "every number from 1 to 3"),
        (
            {"degrees": [torch.arange(3) + 1, torch.full((4,), 5)]},
            ValueError,
            r"degrees\[1\] must stay within 0 to 3, got 5 to 5",
        ),
        ({"degrees": [torch.arange(3) + 1, torch.zeros(4)]}, TypeError, r"degrees\[1\] must be int64"),
        (
            {"degrees": [torch.arange(3) + 1, torch.zeros(4, dtype=torch.int64, device="meta")]},
            ValueError,
            r"degrees\[1\] must be on the device of u, cpu, got meta",
        ),
        (
            {"context": torch.zeros(2, 4, device="meta")},
            ValueError,
            "context must be on the device of u, cpu, got meta",
        ),
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
