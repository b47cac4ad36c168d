"""Uses of positions that no schedule takes are refused with what in the network they are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastgen
from fastgen.generate import CompileError, Groups, UnsupportedOperator, heads
from tests.generate.seeded import built


def make(module: nn.Module, length: int, order="time", **options) -> fastgen.Sampler:
    return fastgen.Sampler(module, (length,), heads.Categorical(5, to_input="unit"), order, **options)


class ReadsContext(nn.Module):
    def __init__(self, use) -> None:
        super().__init__()
        self.conv, self.use = nn.Conv1d(1, 5, 2), use

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return self.use(self.conv(F.pad(x[:, None], (2, -1))), context)


def test_channels_of_a_context_that_are_read_as_positions_are_named():
    with pytest.raises(CompileError, match=r"test_unplaced\.py.*channels of a context.*must be \[N, C, \*positions\]"):
        make(ReadsContext(lambda h, c: h + c[:, None]), 700, example_context=torch.zeros(1, 700))


def test_positions_of_a_context_may_be_another_dimension():
    torch.manual_seed(0)
    sampler = make(
        ReadsContext(lambda h, c: h + c.transpose(1, 2)), 200, example_context=torch.zeros(1, 200, 5), predicts="next"
    )
    context = torch.randn(2, 200, 5)
    sample = sampler.sample(2, seed=1, context=context)
    assert torch.equal(sample, sampler.sample_naive(2, seed=1, context=context))


def test_weights_made_from_a_context_are_not_called_attention_alone():
    with pytest.raises(UnsupportedOperator, match=r"attention, or weights made from a context.*test_unplaced\.py"):
        make(ReadsContext(lambda h, c: torch.bmm(c, h)), 12, example_context=torch.zeros(1, 5, 5))


class SpatialGate(nn.Module):
    """The gate of a causal gMLP: a triangular matrix along the sequence."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.conv, self.output = nn.Conv1d(1, 6, 1), nn.Conv1d(6, 5, 1)
        self.matrix = nn.Parameter(torch.ones(length, length))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.conv(F.pad(x[:, None], (1, -1))))
        return self.output(h * (h @ self.matrix.tril().t()))


def test_a_matrix_along_the_sequence_is_named_with_its_line():
    with pytest.raises(CompileError, match=r"self\.matrix\.tril.*every pair of positions .*gMLP.* is not supported"):
        make(SpatialGate(16), 16)


@pytest.mark.parametrize("order", ["features", [*range(16)], Groups(range(16))])
def test_a_matrix_along_the_positions_of_an_order_that_is_unrolled_is_exact(order):
    sampler = make(built(lambda: SpatialGate(16)), 16, order)
    assert torch.equal(sampler.sample(20, seed=1), sampler.sample_naive(20, seed=1))
