from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgen.ops.soft_clip import BACKWARD, OP, soft_clip

EPSILON = torch.finfo(torch.float32).eps
NUMBERS = 16, 1e-3, 1e-12
SHAPES = [(23,), (1, 17), (5, 23), (700, 23), (3, 2, 40), (0, 23), (4, 16)]


def given(shape: tuple[int, ...], op) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    count = 2 if op is BACKWARD else 1
    return [4 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("op", [OP, BACKWARD], ids=lambda op: op.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_plain_formula(shape, op):
    arguments = given(shape, op)
    torch.testing.assert_close(op(*arguments, *NUMBERS), op.reference(*arguments, *NUMBERS), rtol=1e-12, atol=1e-12)
    strided = [torch.stack([t, t], -1)[..., 0] for t in arguments]
    assert torch.equal(op(*strided, *NUMBERS), op(*arguments, *NUMBERS))


@pytest.mark.parametrize("op", [OP, BACKWARD], ids=lambda op: op.name)
def test_it_is_as_exact_as_float32_allows(op):
    """At most twice the error of the plain formula, and the rounding of the result."""
    arguments = [t.float() for t in given((400, 23), op)]
    exact = op.reference(*(t.double() for t in arguments), *NUMBERS)
    found, plain = op(*arguments, *NUMBERS), op.reference(*arguments, *NUMBERS)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() <= 2 * (plain - exact).abs().max() + 4 * EPSILON * exact.abs().max()


def test_the_softplus_of_a_derivative_is_the_clipped_one():
    raw = 5 * torch.randn(100, 23, dtype=torch.float64)
    found = torch.nn.functional.softplus(soft_clip(raw, *NUMBERS)[:, 16:]) + NUMBERS[2]
    logarithm = raw[:, 16:] / (1 + raw[:, 16:].abs() / -torch.tensor(NUMBERS[1], dtype=torch.float64).log())
    torch.testing.assert_close(found, logarithm.exp(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("slope", [1e-3, 0.5])
def test_gradients_and_their_gradients(slope):
    raw = (3 * torch.randn(4, 8, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda raw: soft_clip(raw, 6, slope, 1e-9 * slope), raw)
    assert torch.autograd.gradgradcheck(lambda raw: soft_clip(raw, 6, slope, 1e-9 * slope), raw)
    torch.library.opcheck(torch.ops.fastgen.soft_clip.default, (raw.detach().float(), 3, 1e-2, 1e-11))


@pytest.mark.needs_extension
@pytest.mark.parametrize("size", [-1e30, -1e4, 1e4, 1e30])
def test_the_kernel_is_exact_at_extremes(size):
    """The derivative of the plain formula cancels there, in float32: 2e-4 of it at 1e4."""
    raw = torch.full((1, 23), size)
    for op, arguments in ((OP, (raw,)), (BACKWARD, (torch.ones_like(raw), raw))):
        found = op(*arguments, *NUMBERS)
        assert found.isfinite().all()
        exact = op.reference(*(a.double() for a in arguments), *NUMBERS)
        torch.testing.assert_close(found.double(), exact, rtol=16 * EPSILON, atol=1e-30)  # exp(7 (1 + e))


@pytest.mark.parametrize("op", [OP, BACKWARD], ids=lambda op: op.name)
def test_one_and_two_threads_are_bitwise_the_same(op):
    arguments = [t.float() for t in given((3000, 23), op)]
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(op(*arguments, *NUMBERS))
    torch.set_num_threads(1)
    assert torch.equal(*found)


@pytest.mark.needs_extension
def test_wrong_numbers_are_named():
    with pytest.raises(RuntimeError, match=r"sizes must be .*, got 24"):
        OP(torch.zeros(2, 23), 24, 1e-3, 0.0)
    with pytest.raises(RuntimeError, match="slope must be between 0 and 1, got 1"):
        OP(torch.zeros(2, 23), 16, 1.0, 0.0)
