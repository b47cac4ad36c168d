from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.nn import MaskedConv2d
from fastgen.reference.masked_conv2d import colour_of

odd = st.integers(0, 3).map(lambda half: 2 * half + 1)


@settings(deadline=None, max_examples=40)
@given(
    kernel=st.tuples(odd, odd),
    mask=st.sampled_from("AB"),
    colours=st.integers(1, 3),
    parts=st.integers(1, 2),
    widths=st.tuples(st.integers(3, 7), st.integers(3, 7)),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_is_the_masked_full_convolution(kernel, mask, colours, parts, widths, stride, dilation, size):
    """The cropped kernel computes what the k x k kernel of the paper, multiplied by its mask, computes."""
    source, target = widths[0], widths[1] * parts
    layer = MaskedConv2d(
        source, target, kernel, mask, colours=colours, parts=parts, stride=stride, dilation=dilation
    ).double()
    (kh, kw), (rows, columns) = kernel, layer.weight.shape[2:]
    full = torch.zeros(target, source, kh, kw, dtype=torch.float64)
    full[:, :, :rows, :columns] = layer.weight.detach()
    for o, colour_out in enumerate(colour_of(target, colours, parts).tolist()):
        for i, colour_in in enumerate(colour_of(source, colours).tolist()):
            full[o, i, kh // 2, kw // 2 + 1 :] = 0
            if not (colour_in < colour_out or (mask == "B" and colour_in == colour_out)):
                full[o, i, kh // 2, kw // 2] = 0
    full[:, :, kh // 2 + 1 :] = 0
    x = torch.randn(2, source, *size, dtype=torch.float64)
    padding = (kh // 2 * dilation, kw // 2 * dilation)
    wanted = F.conv2d(x, full, layer.bias, stride=stride, padding=padding, dilation=dilation)
    torch.testing.assert_close(layer(x), wanted)


def test_colours_are_split_alike_whatever_the_width():
    assert colour_of(3, 3).tolist() == [0, 1, 2]
    assert colour_of(768, 3).tolist() == [0] * 256 + [1] * 256 + [2] * 256
    counts = colour_of(128, 3).bincount()
    assert counts.sum() == 128
    assert counts.max() - counts.min() <= 1
    assert colour_of(8, 2, parts=2).tolist() == [0, 0, 1, 1] * 2


def test_masked_weights_get_no_gradient():
    layer = MaskedConv2d(3, 6, 3, "A", colours=3)
    layer(torch.randn(2, 3, 4, 4)).square().sum().backward()
    assert (layer.weight.grad[layer.mask == 0] == 0).all()
    assert (layer.weight.grad[layer.mask == 1] != 0).all()


def test_the_mask_is_no_part_of_the_checkpoint():
    assert set(MaskedConv2d(1, 2, 3, "B").state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"mask": "C"}, "mask must be 'A' or 'B', got 'C'"),
        ({"kernel_size": 4}, "kernel_size must be odd, got 4"),
        ({"kernel_size": (3, 2)}, "kernel_size"),
        ({"colours": 4}, "colours=4"),
        ({"parts": 5}, "parts=5"),
    ],
)
def test_errors_name_the_argument(arguments, word):
    with pytest.raises(ValueError, match=word):
        MaskedConv2d(**({"in_channels": 3, "out_channels": 6, "kernel_size": 3, "mask": "A"} | arguments))


@settings(deadline=None, max_examples=25)
@given(
    kernel=st.tuples(odd, odd),
    mask=st.sampled_from("AB"),
    colours=st.integers(1, 3),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_steps_are_the_forward(kernel, mask, colours, dilation, bias, size):
    layer = MaskedConv2d(3, 6, kernel, mask, colours=colours, dilation=dilation, bias=bias).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    state, outputs = layer.initial_state(2, size[1]), []
    for position in x.flatten(2).unbind(2):
        y, state = layer.step(position, state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 2).reshape(2, 6, *size), layer(x))


def test_a_step_of_mask_a_does_not_see_its_own_position():
    layer = MaskedConv2d(1, 4, 3, "A")
    state = layer.initial_state(1, 5)
    assert torch.equal(layer.step(torch.zeros(1, 1), state)[0], layer.step(torch.full((1, 1), 9.0), state)[0])


def test_step_refuses_what_it_cannot_do():
    layer = MaskedConv2d(2, 4, 3, "B", stride=2)
    with pytest.raises(ValueError, match=r"stride must be 1 for step, got \(2, 2\)"):
        layer.step(torch.zeros(1, 2), layer.initial_state(1, 4))
    layer = MaskedConv2d(2, 4, 3, "B")
    with pytest.raises(ValueError, match=r"x must have shape .*got \(1, 3\)"):
        layer.step(torch.zeros(1, 3), layer.initial_state(1, 4))
