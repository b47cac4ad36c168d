"""What a row of flow layers hands to each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastgen.nn import FlowSequential, Inverse, MultiScale, Permutation, invertible_checkpoint
from fastgen.ops.seeds import draw_seed, fold_in


class Estimated(nn.Module):
    """The identity; its "estimate" is the seed it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds: list[int | None] = []

    def forward(self, x: Tensor, context: Tensor | None = None, seed: int | None = None) -> tuple[Tensor, Tensor]:
        self.seeds.append(seed)
        return x, x.new_zeros(len(x))

    inverse = forward


def row() -> tuple[nn.Module, list[Estimated]]:
    layers = [Estimated() for _ in range(4)]
    scales = [FlowSequential(layers[0], Permutation(torch.arange(2).flip(0))), Inverse(layers[1])]
    return FlowSequential(FlowSequential(layers[2]), MultiScale(scales, [(2,), (1,)]), layers[3]), layers


def test_every_layer_has_its_own_seed_the_same_both_ways():
    flow, layers = row()
    flow.inverse(flow(torch.randn(3, 2), seed=5)[0], seed=5)
    forward, inverse = zip(*(layer.seeds for layer in layers), strict=True)
    assert forward == inverse
    assert len(set(forward)) == len(layers)
    other, others = row()
    other(torch.randn(3, 2), seed=6)
    assert not set(forward) & {layer.seeds[0] for layer in others}


def test_without_a_seed_each_layer_draws_its_own():
    flow, layers = row()
    flow(torch.randn(3, 2))
    assert [layer.seeds for layer in layers] == [[None]] * 4


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("seed", [None, 5])
def test_a_rebuilt_flow_gives_the_seeds_of_the_plain_one_each_time(seed, inverse):
    flow, layers = row()
    (flow.inverse if inverse else flow)(torch.randn(3, 2), seed=seed)
    expected = [layer.seeds.copy() for layer in layers]
    rebuilt = invertible_checkpoint(flow)
    x = torch.randn(3, 2, requires_grad=True)
    (rebuilt.inverse if inverse else rebuilt)(x, seed=seed)[0].sum().backward()
    assert [set(layer.seeds) for layer in layers] == [set(seeds) for seeds in expected]
    assert all(len(layer.seeds) > 2 for layer in layers)


def test_seeds_fold_into_64_bits_and_come_from_the_generator():
    found = {fold_in(seed, number) for seed in (-(1 << 63), -1, 0, 1, (1 << 63) - 1) for number in range(100)}
    assert len(found) == 500
    assert all(-(1 << 63) <= seed < 1 << 63 for seed in found)
    assert fold_in(None, 3) is None
    torch.manual_seed(0)
    first = draw_seed()
    assert draw_seed() != first
    torch.manual_seed(0)
    assert draw_seed() == first


def test_a_layer_without_inverse_is_refused():
    with pytest.raises(TypeError, match="a flow layer must have a method inverse, got a Linear"):
        FlowSequential(nn.Linear(2, 2))
