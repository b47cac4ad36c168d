"""Causality by pixels and colours, and what the function refuses; the rest is the contract's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastgen.ops import masked_conv2d
from fastgen.reference.masked_conv2d import causal_mask, colour_of


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
        ({"x": torch.zeros(2, 3, 4)}, r"x has shape \(2, 3, 4\)"),
        ({"x": torch.zeros(2, 2, 4, 4)}, r"weight \(6, 3, 2, 3\)"),
        ({"weight": torch.zeros(6, 3, 2, 2)}, "weight has 2 columns"),
        ({"weight": torch.zeros(6, 3, 0, 3)}, r"weight \(6, 3, 0, 3\)"),
        ({"mask": "C"}, "mask='C'"),
        ({"mask": torch.ones(3)}, r"mask has shape \(3,\)"),
        ({"colours": 4}, "colours=4"),
        ({"stride": 0}, "stride=0"),
        ({"dilation": 0}, "dilation=0"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    right = {"x": torch.zeros(2, 3, 4, 4), "weight": torch.zeros(6, 3, 2, 3), "mask": "A"}
    with pytest.raises(ValueError, match=message):
        masked_conv2d(**(right | change))
