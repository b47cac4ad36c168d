from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import strategies

from fastgen.nn.elementwise.monotone_inverse import monotone_inverse


def cubic(x):
    return x + x**3, (1 + 3 * x.square()).log()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@hypothesis.settings(max_examples=30)
@hypothesis.given(x=strategies.lists(strategies.floats(-1e5, 1e5, width=32), min_size=1, max_size=5))
def test_the_inverse_is_within_the_rounding_of_the_function(dtype, x):
    x = torch.tensor(x, dtype=dtype)
    y = cubic(x)[0]
    found, log_derivative = monotone_inverse(cubic, y)
    eps = torch.finfo(dtype).eps
    assert ((found - x).abs() <= 4 * eps * x.abs().clamp(min=eps)).all()
    assert torch.equal(log_derivative, -cubic(found)[1])


def test_where_the_function_is_flat_the_bisection_holds():
    def step(x):
        rise = torch.sigmoid(200 * (x - 3))
        return 1e-6 * x + rise, (1e-6 + 200 * rise * (1 - rise)).log()

    x = torch.tensor([-50.0, 0.0, 2.9, 3.0, 3.1, 800.0], dtype=torch.float64)
    torch.testing.assert_close(monotone_inverse(step, step(x)[0])[0], x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@hypothesis.settings(max_examples=30)
@hypothesis.given(
    x=strategies.lists(strategies.floats(-1e4, 1e4, width=32), min_size=1, max_size=5),
    scale=strategies.sampled_from([0.0, -0.999, 0.3, 1.0, 50.0, 1000.0]),
)
def test_a_function_of_known_reach_has_the_same_inverse(dtype, x, scale):
    def bent(x):
        t = x.tanh()
        return x + scale * t, (1 + scale * (1 - t) * (1 + t)).log()

    x = torch.tensor(x, dtype=dtype)
    y = bent(x)[0]
    found, log_derivative = monotone_inverse(bent, y, reach=torch.tensor(abs(scale), dtype=dtype))
    slack = 8 * torch.finfo(dtype).eps * (y.abs() + x.abs() + abs(scale))
    assert ((bent(found)[0] - y).abs() <= slack).all()
    assert torch.equal(log_derivative, -bent(found)[1])


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_of_known_reach_a_value_that_is_not_finite_is_named(value):
    with pytest.raises(ValueError, match="y must be values of the function"):
        monotone_inverse(lambda x: (x, torch.zeros_like(x)), torch.tensor([value, 1.0]), reach=torch.ones(1))


def test_a_known_reach_leaves_few_steps_to_compile():
    sizes = []

    def counting(module, inputs):
        sizes.append(len(module.graph.nodes))
        return module.forward

    def inverse(y):
        return monotone_inverse(lambda x: (x + x.tanh(), 1 + x.tanh()), y, reach=torch.ones(1))[0]

    torch._dynamo.reset()
    y = torch.tensor([0.5, -3.0])
    torch.testing.assert_close(torch.compile(inverse, backend=counting, fullgraph=True)(y), inverse(y))
    assert sizes[0] < 400


def test_the_derivatives_are_those_of_the_implicit_function():
    def scaled(x, scale):
        value, log_slope = cubic(x * scale)
        return value, log_slope + scale.log()

    y = torch.tensor([-30.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64, requires_grad=True)

    def inverse(y, scale):
        return monotone_inverse(lambda x: scaled(x, scale), y)

    assert torch.autograd.gradcheck(inverse, (y, scale))
    assert torch.autograd.gradgradcheck(inverse, (y, scale))
    found, pushed = torch.func.jvp(inverse, (y, scale), (torch.ones_like(y), torch.zeros_like(scale)))
    torch.testing.assert_close(pushed[0], found[1].exp())


def test_a_value_out_of_range_is_named():
    with pytest.raises(
        ValueError, match=r"y must be values of the function, got 2 that are not, the first of them 1\.5"
    ):
        monotone_inverse(lambda x: (x.tanh(), -2 * x.cosh().log()), torch.tensor([0.5, 1.5, -2.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    y = torch.tensor([2.0, -10.0], dtype=dtype)
    x, log_derivative = monotone_inverse(cubic, y)
    assert torch.equal(x, torch.tensor([1.0, -2.0], dtype=dtype))
    assert log_derivative.dtype == torch.float32
