from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgen.ops import tangent_activation as module
from fastgen.ops.tangent_activation import BACKWARD, CONTRACTION, FORWARD
from fastgen.reference.hutchinson_trace import ACTIVATIONS

pytestmark = pytest.mark.needs_extension
EPSILON = torch.finfo(torch.float32).eps
SHAPES = [(1, 1), (3, 7), (2, 513), (5, 16, 33), (2, 3, 4, 5), (0, 4)]


def given(shape: tuple[int, ...], probes: int, shared: bool, backward: bool, number: int) -> list[Tensor]:
    """The arguments of the op behind the number of the activation, in float64."""
    generator = torch.Generator().manual_seed(1)

    def make(*size: int) -> Tensor:
        return 3 * torch.randn(*size, generator=generator, dtype=torch.float64)

    a, tangents = make(*shape), make(probes, 1 if shared else shape[0], *shape[1:])
    if not backward:
        return [a, tangents]
    value, slope, _ = FORWARD.reference(number, a, tangents)
    return [a, value, slope, tangents, make(*shape), make(probes, *shape)]


@pytest.mark.parametrize("op", [FORWARD, BACKWARD], ids=lambda op: op.name)
@pytest.mark.parametrize("number", range(len(ACTIVATIONS)), ids=list(ACTIVATIONS))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_is_the_plain_formula(shape, number, op):
    for probes, shared in ((1, False), (3, True), (2, False), (0, False)):
        arguments = given(shape, probes, shared, op is BACKWARD, number)
        torch.testing.assert_close(op(number, *arguments), op.reference(number, *arguments), rtol=1e-12, atol=1e-12)
        strided = [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in arguments]
        torch.testing.assert_close(op(number, *strided), op(number, *arguments), rtol=0, atol=0)


@pytest.mark.parametrize("op", [FORWARD, BACKWARD], ids=lambda op: op.name)
@pytest.mark.parametrize("number", range(len(ACTIVATIONS)), ids=list(ACTIVATIONS))
def test_the_kernel_is_as_exact_as_float32_allows(number, op):
    """At most twice the error of the plain formula, and the rounding of the result."""
    arguments = [t.float() for t in given((40, 77), 2, False, op is BACKWARD, number)]
    exact = op.reference(number, *(t.double() for t in arguments))
    for ours, plain, true in zip(op(number, *arguments), op.reference(number, *arguments), exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - true).abs().max() <= 2 * (plain - true).abs().max() + 4 * EPSILON * true.abs().max()


@pytest.mark.parametrize("op", [FORWARD, BACKWARD], ids=lambda op: op.name)
def test_one_and_two_threads_are_bitwise_the_same_and_opcheck(op):
    arguments = [t.float() for t in given((50, 1025), 3, True, op is BACKWARD, 2)]
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(op(2, *arguments))
    torch.set_num_threads(1)
    torch.testing.assert_close(*found, rtol=0, atol=0)
    small = [t.float() for t in given((3, 5), 2, False, op is BACKWARD, 1)]
    torch.library.opcheck(getattr(torch.ops.fastgen, op.name).default, (1, *small))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", [-1e4, -90.0, 90.0, 1e4])
def test_extremes_are_as_the_formula_has_them(size, activation):
    a, tangents, number = torch.full((2, 3), size), torch.ones(1, 2, 3), list(ACTIVATIONS).index(activation)
    torch.testing.assert_close(FORWARD(number, a, tangents), FORWARD.reference(number, a, tangents))
    value, slope, _ = FORWARD(number, a, tangents)
    arguments = (a, value, slope, tangents, torch.ones_like(a), tangents)
    torch.testing.assert_close(BACKWARD(number, *arguments), BACKWARD.reference(number, *arguments))


def test_images_keep_their_channels_last():
    a = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    found = module.tangent_activation("tanh", a, torch.stack([a, a]))
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert found[2].shape == (2, 2, 3, 4, 5)
    torch.testing.assert_close(found[2][0], a * (1 - a.tanh() ** 2))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_contraction_is_the_plain_formula(shape):
    for probes in (0, 1, 3):
        for of_tangents in (1, shape[0]):
            for of_met in (1, shape[0]):
                slope, *pairs = (
                    torch.randn(*size, *shape[1:], dtype=torch.float64)
                    for size in (shape[:1], (probes, of_tangents), (probes, of_met))
                )
                exact = CONTRACTION.reference(slope, *pairs)
                torch.testing.assert_close(CONTRACTION(slope, *pairs), exact, rtol=1e-12, atol=1e-12)
                single = [t.float() for t in (slope, *pairs)]
                bound = (probes + 1) * EPSILON * CONTRACTION.reference(*(t.double().abs() for t in single))
                error = CONTRACTION(*single) - CONTRACTION.reference(*(t.double() for t in single))
                assert (error.abs() <= bound).all()


def test_opcheck_of_the_contraction_and_its_errors():
    slope, tangents, met = torch.randn(3, 5), torch.randn(2, 1, 5), torch.randn(2, 3, 5)
    torch.library.opcheck(torch.ops.fastgen.tangent_contraction.default, (slope, tangents, met))
    with pytest.raises(RuntimeError, match="tangents must be"):
        CONTRACTION(slope, tangents, met[:, :2])
    with pytest.raises(RuntimeError, match="as many probes"):
        CONTRACTION(slope, tangents[:1], met)


def test_wrong_tangents_are_named():
    with pytest.raises(RuntimeError, match="tangents must be"):
        FORWARD(0, torch.zeros(3, 4), torch.zeros(2, 2, 4))
    with pytest.raises(RuntimeError, match="tangents does not fit a"):
        FORWARD(0, torch.zeros(3, 4), torch.zeros(2, 3, 5))
