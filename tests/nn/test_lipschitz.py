from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.linalg import svdvals, vector_norm
from torch.utils.checkpoint import checkpoint

from fastgen.nn.residual import lipschitz
from fastgen.nn.residual.induced_norm import CLOSED
from fastgen.nn.residual.lipschitz import LipschitzConv2d, LipschitzLinear

TOLERANCE = 1e-9
CONVOLUTIONS = [(2, 3, 1, (4, 5)), (2, 3, 3, (4, 5)), (3, 1, 5, (6, 5)), (1, 2, 3, (1, 7)), (2, 2, 5, (2, 2))]


def linear(inputs: int, outputs: int, **options) -> LipschitzLinear:
    torch.manual_seed(0)
    return LipschitzLinear(inputs, outputs, **{"tolerance": TOLERANCE} | options).double()


def convolution(inputs: int, outputs: int, kernel: int, size: tuple[int, int], **options) -> LipschitzConv2d:
    torch.manual_seed(0)
    return LipschitzConv2d(inputs, outputs, kernel, size=size, **{"tolerance": TOLERANCE} | options).double()


def unrolled(layer: LipschitzConv2d, weight: Tensor) -> Tensor:
    """The matrix of the whole map from image to image."""
    pixels = weight.shape[1] * layer.size[0] * layer.size[1]
    units = torch.eye(pixels, dtype=weight.dtype).reshape(pixels, weight.shape[1], *layer.size)
    return layer.apply_weight(weight, units).flatten(1).t()


def brute_force(matrix: Tensor, domain: float, codomain: float) -> Tensor:
    """The largest image of the vectors that can be stretched most: unit vectors, and what is aligned with a row."""
    rows = matrix.sign() if domain == math.inf else matrix / vector_norm(matrix, 2, dim=1, keepdim=True)
    tried = torch.eye(matrix.shape[1], dtype=matrix.dtype) if domain == 1 else rows
    return vector_norm(tried @ matrix.t(), codomain, dim=1).max()


def matrices() -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {"one": (1, 1), "row": (1, 6), "column": (6, 1), "wide": (5, 40), "tall": (33, 7), "square": (64, 64)}
    found = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    found["of rank 1"] = torch.randn(9, 1, dtype=torch.float64) @ torch.randn(1, 8, dtype=torch.float64)
    found["orthogonal"] = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64))[0]
    found["huge"] = 1e30 * torch.randn(6, 6, dtype=torch.float64)
    found["tiny"] = 1e-30 * torch.randn(6, 6, dtype=torch.float64)
    return found


@pytest.mark.parametrize("name", matrices())
def test_the_norm_of_a_matrix_converges_to_its_largest_singular_value(name):
    matrix = matrices()[name]
    layer = linear(matrix.shape[1], matrix.shape[0])
    with torch.no_grad():
        layer.weight.copy_(matrix)
    layer.eval()
    exact = svdvals(matrix)[0]
    assert abs(layer.norm() - exact) <= TOLERANCE * exact
    assert svdvals(layer.bounded_weight().detach())[0] <= layer.coefficient * (1 + TOLERANCE)


@pytest.mark.parametrize(("inputs", "outputs", "kernel", "size"), CONVOLUTIONS)
def test_the_norm_of_a_convolution_converges_to_that_of_its_matrix(inputs, outputs, kernel, size):
    layer = convolution(inputs, outputs, kernel, size)
    with torch.no_grad():
        layer.weight.mul_(5)
    layer.eval()
    exact = svdvals(unrolled(layer, layer.weight.detach()))[0]
    assert abs(layer.norm() - exact) <= TOLERANCE * exact
    bounded = svdvals(unrolled(layer, layer.bounded_weight().detach()))[0]
    assert abs(bounded - layer.coefficient) <= layer.coefficient * TOLERANCE


@pytest.mark.parametrize(("domain", "codomain"), CLOSED)
def test_norms_from_1_and_to_infinity_are_exact_at_once(domain, codomain):
    layer = linear(6, 4, domain=domain, codomain=codomain)
    torch.testing.assert_close(layer.norm(), brute_force(layer.weight, domain, codomain))
    wide = convolution(2, 3, 3, (3, 3), domain=domain, codomain=codomain)
    matrix = unrolled(wide, wide.weight)
    torch.testing.assert_close(wide.norm(), brute_force(matrix, domain, codomain))
    small = convolution(2, 3, 5, (2, 2), domain=domain, codomain=codomain)
    assert small.norm() >= brute_force(unrolled(small, small.weight), domain, codomain) * (1 - 1e-12)


@pytest.mark.parametrize(("domain", "codomain"), [*CLOSED, (2, 2)])
def test_no_input_is_stretched_more_than_the_bound(domain, codomain):
    layer = linear(4, 3, domain=domain, codomain=codomain)
    with torch.no_grad():
        layer.weight.mul_(3)
    layer.eval()
    x = torch.randn(200, 4, dtype=torch.float64)
    stretched = vector_norm(x @ layer.bounded_weight().t(), codomain, dim=1) / vector_norm(x, domain, dim=1)
    assert stretched.max() <= layer.coefficient * (1 + TOLERANCE)


def test_a_weight_below_the_bound_is_left_as_it_is():
    layer = linear(6, 4)
    with torch.no_grad():
        layer.weight.mul_(0.5 * layer.coefficient / svdvals(layer.weight)[0])
    assert torch.equal(layer.eval().bounded_weight(), layer.weight)


def test_a_weight_of_zeros_can_grow_again():
    layer = linear(6, 4)
    weight = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.zero_()
    assert torch.equal(layer(torch.ones(1, 6, dtype=torch.float64))[0], layer.bias)
    layer.eval()
    with torch.no_grad():
        layer.weight.copy_(weight)
    layer.eval()
    torch.testing.assert_close(layer.norm(), svdvals(weight)[0])


def test_training_calls_find_the_norm_step_by_step():
    layer, x = linear(30, 20, iterations=2), torch.randn(1, 30, dtype=torch.float64)
    known = []
    for _ in range(400):
        layer(x)
        known.append(layer.norm().item())
    assert all(b >= a * (1 - 1e-14) for a, b in itertools.pairwise(known))
    assert known[-1] == pytest.approx(svdvals(layer.weight.detach())[0].item(), rel=1e-9)
    sure = linear(30, 20, iterations=None)
    sure(x)
    assert sure.norm().item() == pytest.approx(known[-1], rel=1e-9)


def test_only_training_calls_with_a_gradient_move_the_direction():
    layer, x = linear(6, 4), torch.randn(3, 6, dtype=torch.float64)
    before = layer.direction.clone()
    with torch.no_grad():
        layer(x)
    assert torch.equal(layer.direction, before)
    layer(x)
    assert not torch.equal(layer.direction, before)
    settled = layer.eval().direction.clone()
    layer(x)
    assert torch.equal(layer.eval().direction, settled)


def test_two_calls_before_one_backward_pass():
    layer = linear(6, 4)
    layer(layer(torch.randn(3, 6, dtype=torch.float64)) @ torch.randn(4, 6, dtype=torch.float64)).sum().backward()
    assert layer.weight.grad.isfinite().all()


def test_the_gradient_is_that_of_the_singular_value():
    layer = linear(5, 4).eval()
    probe = torch.randn(4, 5, dtype=torch.float64)
    (found,) = torch.autograd.grad((layer.bounded_weight() * probe).sum(), layer.weight)
    weight = layer.weight.detach().requires_grad_()
    bounded = weight / (svdvals(weight)[0] / layer.coefficient).clamp_min(1)
    (expected,) = torch.autograd.grad((bounded * probe).sum(), weight)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_loaded_layer_is_the_same():
    layer = convolution(2, 3, 3, (4, 4)).eval()
    other = LipschitzConv2d(2, 3, size=(4, 4), tolerance=TOLERANCE).double()
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    assert torch.equal(other.eval()(x), layer(x))


@pytest.mark.parametrize("training", [True, False])
def test_it_compiles_without_a_break(training):
    torch._dynamo.reset()
    layer = linear(6, 4).train(training)
    twin = copy.deepcopy(layer)
    x = torch.randn(3, 6, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), twin(x))
    torch.testing.assert_close(layer.direction, twin.direction)


def test_it_says_when_the_norm_is_not_found(monkeypatch):
    monkeypatch.setattr(lipschitz, "_LIMIT", 1)
    with pytest.warns(RuntimeWarning, match=r"the norm of LipschitzLinear.* after 1 products; tolerance=1e-09"):
        linear(30, 20).eval()


@pytest.mark.parametrize("coefficient", [1, 1.5, 0, -0.5, math.nan])
def test_a_bound_that_is_none_is_refused(coefficient):
    with pytest.raises(ValueError, match=r"coefficient must be greater than 0 and less than 1, got .*"):
        LipschitzLinear(2, 2, coefficient=coefficient)
    with pytest.raises(ValueError, match="coefficient must be greater than 0 and less than 1"):
        LipschitzConv2d(2, 2, size=(4, 4), coefficient=coefficient)


def test_other_wrong_arguments_are_refused():
    for wrong in ({"domain": 0.5}, {"domain": math.inf}, {"tolerance": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} .*must be"):
            LipschitzLinear(2, 2, **wrong)
    with pytest.raises(ValueError, match="iterations must be an integer of at least 1, got 0"):
        LipschitzLinear(2, 2, iterations=0)
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        LipschitzConv2d(2, 2, 4, size=(4, 4))
    with pytest.raises(ValueError, match=r"size must be a height and a width, each at least 1, got \(0, 4\)"):
        LipschitzConv2d(2, 2, size=(0, 4))
    with pytest.raises(ValueError, match=r"x must have shape \[N, 2, 4, 4\], got \(1, 2, 4, 5\)"):
        LipschitzConv2d(2, 2, size=(4, 4))(torch.zeros(1, 2, 4, 5))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_the_direction_moves_once_where_a_forward_is_computed_again(use_reentrant):
    torch.manual_seed(0)
    layer = LipschitzLinear(6, 5, coefficient=0.5, iterations=1).double()
    layer.weight.data.mul_(5)
    plain, x = copy.deepcopy(layer), torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        for made, call in ((layer, lambda x: checkpoint(layer, x, use_reentrant=use_reentrant)), (plain, plain)):
            made.zero_grad()
            call(x).square().sum().backward()
            with torch.no_grad():
                made.weight.mul_(0.9)
        assert torch.equal(layer.direction, plain.direction)
        if not use_reentrant:
            assert torch.equal(layer.weight.grad, plain.weight.grad)
