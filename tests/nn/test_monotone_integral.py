from __future__ import annotations

import math

import pytest
import torch

from fastgen.nn.elementwise.monotone_integral import MonotoneIntegral, clenshaw_curtis


@pytest.mark.parametrize("intervals", [1, 2, 3, 8, 51])
def test_the_quadrature_is_exact_for_polynomials_of_its_degree(intervals):
    nodes, weights = clenshaw_curtis(intervals)
    assert len(nodes) == intervals + 1
    assert (weights > 0).all()
    degrees = torch.arange(intervals + 1, dtype=torch.float64)
    torch.testing.assert_close((nodes ** degrees[:, None]) @ weights, 1 / (degrees + 1))


@pytest.mark.parametrize("slope", [-1.0, 1.0])
def test_it_is_the_integral_of_its_derivative(slope):
    transform = MonotoneIntegral(1, (1,), intervals=20, min_derivative=0.1).double()
    offset, least = 0.3, 0.1
    x = torch.linspace(-0.9, 3, 5, dtype=torch.float64)[:, None]
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.fill_(0)
        transform.of_x.weight.fill_(1)
        transform.of_embedding.bias.fill_(10)  # the hidden unit is x + 10, where elu is the identity
        transform.layers[0].weight.fill_(slope)
        transform.layers[0].bias.fill_(-9 * slope)  # the network is slope (1 + x), which has the sign of the slope
        y, log_det = transform(x, torch.tensor([offset, 0.7], dtype=torch.float64).expand(5, 1, 2))
    wanted = (-1.0 * x).expm1() / -math.e if slope < 0 else 2 * x + x.square() / 2
    torch.testing.assert_close(y, offset + least * x + wanted)
    derivative = (-1 - x).exp() if slope < 0 else 2 + x
    torch.testing.assert_close(log_det, (least + derivative).log()[:, 0])


def test_the_gradient_by_the_weights_is_the_integral_of_the_integrand_s():
    transform = MonotoneIntegral(3, (8, 8), intervals=20).double()
    parameters = torch.randn(1, 1, 4, dtype=torch.float64)
    x = torch.tensor([[-1.3]], dtype=torch.float64)
    weights = [p for p in transform.parameters() if p.requires_grad]
    found = torch.autograd.grad(transform(x, parameters)[0].sum(), weights)
    nodes, of_nodes = clenshaw_curtis(20)
    at_nodes = transform((nodes * x).T, parameters.expand(21, 1, 4))[1].exp()
    integral = x * (of_nodes * at_nodes).sum()
    for part, wanted in zip(found, torch.autograd.grad(integral.sum(), weights), strict=True):
        torch.testing.assert_close(part, wanted)


def test_what_is_kept_for_the_backward_does_not_grow_with_the_nodes():
    def kept(intervals: int) -> int:
        transform = MonotoneIntegral(3, (8, 8), intervals=intervals)
        x, parameters = torch.randn(50, 4, requires_grad=True), torch.randn(50, 4, 4, requires_grad=True)
        sizes = {}

        def pack(tensor):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = transform(x, parameters)
        assert result[0].requires_grad
        return sum(sizes.values())

    rule = 2
    assert kept(100) - kept(10) <= rule * 90


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"embedding": 0}, "embedding must be an integer of at least 1, got 0"),
        ({"hidden": ()}, r"hidden must have the width of one layer at least, each 1 or more, got \(\)"),
        ({"hidden": (4, 0)}, r"hidden must have the width of one layer at least, each 1 or more, got \(4, 0\)"),
        ({"intervals": 0}, "intervals must be an integer of at least 1, got 0"),
        ({"min_derivative": 0.0}, "min_derivative must be greater than 0, got 0.0"),
    ],
)
def test_wrong_numbers_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        MonotoneIntegral(**arguments)
