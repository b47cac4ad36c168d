from __future__ import annotations

import math

import pytest
import torch

from fastgen.nn import GatedAttention, GatedAttentionNet


def test_attention_is_the_formula():
    layer = GatedAttention(6, heads=2).double()
    x, position = torch.randn(3, 5, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    query, key, value = layer.project_in(x + position).chunk(3, 2)
    heads = []
    for part in (slice(0, 3), slice(3, 6)):
        scores = query[..., part] @ key[..., part].mT / math.sqrt(3)
        heads.append(scores.softmax(-1) @ value[..., part])
    a, b = layer.project_out(torch.cat(heads, 2)).chunk(2, 2)
    torch.testing.assert_close(layer(x, position), x + a * b.sigmoid())


@pytest.mark.parametrize("context", [None, (4, 3), (4, 3, 2, 6)], ids=["none", "vector", "map"])
def test_every_output_depends_on_every_input(context):
    """Also on those out of the convolutions' sight: that is what the attention is for."""
    shape = (2, 2, 6)
    net = GatedAttentionNet(shape, 5, filters=8, blocks=1, heads=2, context_features=context and 3).double()
    x = torch.randn(4, *shape, dtype=torch.float64)
    context = None if context is None else torch.randn(context, dtype=torch.float64)
    first = None if context is None else context[:1]
    jacobian = torch.autograd.functional.jacobian(lambda row: net(row[None], first)[0], x[0])
    assert net(x, context).shape == (4, 5, 2, 6)
    assert (jacobian != 0).all()
    if context is not None:
        assert (net(x, context + 1) != net(x, context)).all()


def test_positions_are_told_apart_by_their_encoding_alone():
    layer, order = GatedAttention(6, heads=2).double(), torch.tensor([3, 0, 4, 1, 2])
    x, position = torch.randn(3, 5, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x[:, order], 0 * position), layer(x, 0 * position)[:, order])
    assert (layer(x[:, order], position) != layer(x, position)[:, order]).all()


def test_outputs_begin_with_a_deviation_of_about_a_tenth():
    net = GatedAttentionNet((2, 8, 8), 40, filters=32, blocks=1)
    with torch.no_grad():
        deviation = net(torch.randn(16, 2, 8, 8))[:, :, 1:-1, 1:-1].std()
    assert 0.08 < deviation < 0.12


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="channels must be a multiple of heads=4, got 6"):
        GatedAttention(6)
    with pytest.raises(ValueError, match=r"x must have shape \[N, 1, 2, 4\], got \(3, 1, 4, 2\)"):
        GatedAttentionNet((1, 2, 4), 1, filters=8)(torch.zeros(3, 1, 4, 2))
