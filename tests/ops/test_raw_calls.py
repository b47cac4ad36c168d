"""``torch.ops.fastgen.*`` called with what does not fit: an exception in words or a result, never a crash."""

from __future__ import annotations

import pytest
import torch

import fastgen.ops
from fastgen.ops.registry import OPS
from fastgen.reference.masked_conv2d import causal_mask
from tests.ops.raw_calls import outcome, recorded

pytestmark = [
    pytest.mark.needs_extension,
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


def test_every_op_is_called():
    called = {name for name, _ in recorded()}
    assert called == {name for name, op in OPS.items() if op.composite is None}


@pytest.mark.parametrize("seed", range(2))
def test_arguments_that_do_not_fit(seed):
    """``python -m tests.ops.raw_calls COUNT SEED`` makes more of them."""
    assert outcome(150, seed).startswith("done")


@pytest.mark.parametrize("dilation", [2**17, 2**30, 2**60, 2**62, 2**63 - 1])
def test_taps_beyond_the_image_count_nothing_whatever_the_dilation(dilation):
    """faults/robustness_masked_conv2d_dilation: products of sizes overflowed."""
    x, weight = torch.randn(2, 32, 20, 32), torch.randn(32, 32, 3, 5)
    seen = causal_mask("B", tuple(weight.shape), 1, 1)
    y = torch.ops.fastgen.masked_conv2d_taps(x, weight * seen, torch.zeros(32), seen != 0, dilation)
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, weight[:, :, -1:, 2:3]))
    gradients = torch.ops.fastgen.masked_conv2d_taps_backward(
        torch.ones_like(y), x, weight * seen, torch.zeros(32), seen != 0, dilation
    )
    elsewhere = gradients[1].clone()
    elsewhere[:, :, -1, 2] = 0
    assert not elsewhere.any()
    with pytest.raises(ValueError, match="dilation must be at most"):
        fastgen.ops.masked_conv2d(x, weight, mask="B", dilation=dilation if dilation > 2**20 else 2**31)


def test_writing_over_x_is_seen_by_autograd():
    """faults/robustness_inplace_version: a stale gradient came without a word."""
    p = torch.randn(3, 4, 5, 5)
    raw = (torch.ones(2), None, False, 0, False)
    for write in (
        lambda y: fastgen.ops.affine_coupling_(y, p),
        lambda y: fastgen.ops.affine_coupling_(y.detach(), p),
        lambda y: fastgen.ops.affine_coupling_(y[..., ::2], p[..., ::2]),
        lambda y: torch.ops.fastgen.affine_coupling_(y, p, *raw),
    ):
        x = torch.randn(3, 2, 5, 5, requires_grad=True)
        y = x * 2
        z = y.sin()
        before = y._version
        with torch.no_grad():
            write(y)
        assert y._version > before
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.sum().backward()
    with torch.inference_mode():  # where versions are not counted
        y = torch.randn(3, 2, 5, 5)
        expected = fastgen.ops.affine_coupling(y, p)
        assert torch.equal(fastgen.ops.affine_coupling_(y, p)[0], expected[0])


def test_parameters_that_share_memory_with_x_are_refused():
    memory = torch.randn(3 * 12)
    x, parameters = memory[:12].view(3, 4), memory[8:32].view(3, 8)
    with pytest.raises(RuntimeError, match="parameters must not share memory with x"):
        torch.ops.fastgen.affine_coupling_(x, parameters, torch.ones(4), None, False, 0, False)
