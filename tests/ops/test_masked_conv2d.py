"""Causality by pixels and colours, and what the function refuses; the rest is the contract's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastgen.ops import masked_conv2d
from fastgen.ops.masked_conv2d import TAPS, TAPS_BACKWARD, _by_taps, _has_kernel
from fastgen.reference.masked_conv2d import causal_mask, colour_of
from tests.ops.test_contract import threads


@given(
    kind=st.sampled_from("AB"),
    colours=st.integers(1, 3),
    half=st.integers(0, 2),
    row=st.integers(0, 3),
    column=st.integers(0, 3),
    channel=st.integers(0, 2),
)
def test_a_change_shows_only_later_in_raster_order_and_in_the_colours(kind, colours, half, row, column, channel):
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(6, 3, half + 1, 2 * half + 1, generator=generator, dtype=torch.float64) + 0.1
    x = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    changed = x.clone()
    changed[0, channel, row, column] = 1
    difference = masked_conv2d(changed, weight, mask=kind, colours=colours) != masked_conv2d(
        x, weight, mask=kind, colours=colours
    )
    source, target = colour_of(3, colours)[channel], colour_of(6, colours)
    position = torch.arange(16).reshape(4, 4)
    later = (position > row * 4 + column).expand(6, 4, 4).clone()
    later[:, row, column] = target > source if kind == "A" else target >= source
    assert not (difference[0] & ~later).any()
    assert torch.equal(difference[0, :, row, column], later[:, row, column])


def test_a_mask_made_before_is_the_mask_by_name():
    x, weight = torch.randn(2, 3, 5, 5), torch.randn(6, 3, 3, 5)
    mask = causal_mask("A", (6, 3, 3, 5), 3)
    assert torch.equal(masked_conv2d(x, weight, mask=mask), masked_conv2d(x, weight, mask="A", colours=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, r"x and weight must have shapes \[N, in,.*, got \(2, 3, 4\) and \(6, 3, 2, 3\)"),
        ({"x": torch.zeros(2, 2, 4, 4)}, r"x and weight must have .*, got \(2, 2, 4, 4\) and \(6, 3, 2, 3\)"),
        ({"weight": torch.zeros(6, 3, 2, 2)}, r"weight must have an odd number of.*, got 2"),
        ({"weight": torch.zeros(6, 3, 0, 3)}, r"x and weight must have .*, got \(2, 3, 4, 4\) and \(6, 3, 0, 3\)"),
        ({"mask": "C"}, "mask must be .*, got 'C'"),
        ({"mask": torch.ones(3)}, r"mask must have the shape of weight,.*, got \(3,\)"),
        ({"colours": 4}, "colours=4"),
        ({"stride": 0}, "stride and dilation must be at least 1, got 0 and 1"),
        ({"dilation": 0}, "stride and dilation must be at least 1, got 1 and 0"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    right = {"x": torch.zeros(2, 3, 4, 4), "weight": torch.zeros(6, 3, 2, 3), "mask": "A"}
    with pytest.raises(ValueError, match=message):
        masked_conv2d(**(right | change))


def by_taps(n: int, channels: int, outputs: int, size: tuple[int, int], kernel: tuple[int, int], kind: str, dtype):
    """Arguments of the op behind images that are wide enough, and a gradient of its result."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = kernel
    seen = causal_mask(kind, (outputs, channels, rows, columns), 1) != 0
    x = torch.randn(n, channels, *size, generator=generator, dtype=dtype)
    weight = torch.randn(outputs, channels, rows, columns, generator=generator, dtype=dtype)
    bias, grad = (torch.randn(*s, generator=generator, dtype=dtype) for s in ((outputs,), (n, outputs, *size)))
    return [x, weight, bias, seen], grad


@pytest.mark.needs_extension
@given(
    n=st.integers(0, 3),
    channels=st.integers(1, 70),
    outputs=st.integers(1, 21),
    size=st.tuples(st.integers(1, 40), st.integers(1, 50)),
    kernel=st.tuples(st.integers(1, 4), st.integers(0, 3)),
    kind=st.sampled_from("AB"),
    dilation=st.integers(1, 3),
)
def test_the_kernel_is_the_plain_convolution_whatever_the_shapes(n, channels, outputs, size, kernel, kind, dilation):
    kernel = (kernel[0], 2 * kernel[1] + 1)
    given, grad = by_taps(n, channels, outputs, size, kernel, kind, torch.float64)
    torch.testing.assert_close(TAPS(*given, dilation), TAPS.reference(*given, dilation))
    ours, plain = (op(grad, *given, dilation) for op in (TAPS_BACKWARD, TAPS_BACKWARD.reference))
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.needs_extension
@pytest.mark.parametrize("kernel", [(2, 3), (4, 7)])
def test_many_products_are_summed_as_exactly_as_the_library_does(kernel):
    given, grad = by_taps(2, 96, 24, (17, 33), kernel, "B", torch.float32)
    wide = [t.double() if t.is_floating_point() else t for t in given]
    exact = [TAPS.reference(*wide, 1), *TAPS_BACKWARD.reference(grad.double(), *wide, 1)]
    plain = [TAPS.reference(*given, 1), *TAPS_BACKWARD.reference(grad, *given, 1)]
    ours = [TAPS(*given, 1), *TAPS_BACKWARD(grad, *given, 1)]
    for mine, theirs, true in zip(ours, plain, exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - true).abs().max() <= 2 * (theirs - true).abs().max()


@pytest.mark.needs_extension
@pytest.mark.parametrize("n", [1, 3, 20])
def test_one_and_two_threads_are_bitwise_the_same_by_taps(n):
    given, grad = by_taps(n, 20, 12, (33, 31), (2, 3), "B", torch.float32)
    found = []
    for count in (1, 2):
        with threads(count):
            found.append([TAPS(*given, 1), *TAPS_BACKWARD(grad, *given, 1)])
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


@pytest.mark.needs_extension
def test_the_ops_by_taps_pass_opcheck_and_have_derivatives_of_any_order():
    given, grad = by_taps(1, 2, 3, (2, 13), (2, 3), "A", torch.float64)
    # without gradients of its own: PyTorch cannot trace a convolution's second derivative at sizes that may change
    torch.library.opcheck(torch.ops.fastgen.masked_conv2d_taps_backward.default, (grad, *given, 1))
    x, weight, bias = (t.requires_grad_() for t in given[:3])
    torch.library.opcheck(torch.ops.fastgen.masked_conv2d_taps.default, (x, weight, bias, given[3], 1))

    def function(x, weight, bias):
        return _by_taps(x, weight, bias, given[3], 1)

    assert torch.autograd.gradcheck(function, (x, weight, bias), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (x, weight, bias))


@pytest.mark.needs_extension
def test_the_kernel_takes_what_it_is_faster_at_and_nothing_else():
    x, weight = torch.zeros(2, 20, 8, 16), torch.zeros(16, 20, 2, 3)
    assert _has_kernel(x, weight, 1)
    assert not _has_kernel(x, weight, 2)
    assert not _has_kernel(x[..., :12], weight, 1)
    assert not _has_kernel(x, weight[:, :3], 1)
    assert not _has_kernel(x, weight[:8], 1)
    assert not _has_kernel(x, weight[:, :, :1], 1)
    assert not _has_kernel(x, weight.expand(1000, 16, 20, 2, 3).flatten(0, 1), 1)
    assert not _has_kernel(x.bfloat16(), weight.bfloat16(), 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert not _has_kernel(x, weight, 1)
        assert masked_conv2d(x, weight, mask="B").dtype == torch.bfloat16


@pytest.mark.needs_extension
def test_export_and_transforms_find_the_library_s_convolution():
    x, weight = torch.randn(2, 16, 8, 16), torch.randn(17, 16, 2, 3)

    class Layer(torch.nn.Module):
        def forward(self, x):
            return masked_conv2d(x, weight, mask="B")

    targets = {str(node.target) for node in torch.export.export(Layer(), (x,)).graph.nodes}
    assert not any("fastgen" in target for target in targets)
    several = torch.func.vmap(lambda x: masked_conv2d(x, weight, mask="B"))(torch.stack([x, 2 * x]))
    torch.testing.assert_close(several[0], masked_conv2d(x, weight, mask="B"))
