"""Sums of contractions: which become one contraction, and that none changes what is sampled."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from fastgen.generate import heads
from fastgen.generate.ir.graph import Graph, Node, Value
from fastgen.generate.ir.verify_graph import verify
from fastgen.generate.passes.merge_sums import merge_sums
from tests.generate.compiled import FAST
from tests.generate.seeded import built
from tests.generate.small_graphs import STEPS, draws_of, past, pointwise, sequence, values, weights

LEVELS = 5


class Skips(nn.Module):
    """A gated stack whose output is the sum of a skip convolution of every layer."""

    def __init__(self, layers: int = 4, look_at_sum: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 6, 1)
        self.gates = nn.ModuleList(nn.Conv1d(6, 6, 2, dilation=2**i) for i in range(layers))
        width = 6 if look_at_sum else 9
        self.skips = nn.ModuleList(nn.Conv1d(6, width, 1, bias=i % 2 == 0) for i in range(layers))
        self.last = nn.Conv1d(width, LEVELS, 1)
        self.look_at_sum = look_at_sum

    def forward(self, x: Tensor) -> Tensor:
        h, total = self.first(F.pad(x, (1, -1))), 0
        for gate, skip in zip(self.gates, self.skips, strict=True):
            z = torch.tanh(gate(F.pad(h, (gate.dilation[0], 0))))
            total, h = total + skip(z), h + z
            if self.look_at_sum:
                h = h + total
        return self.last(F.relu(total))


class Upsampled(nn.Module):
    """A 1 x 1 convolution at half the rate, repeated and added to one at the full rate."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high, self.down = nn.Conv1d(4, 7, 1), nn.Conv1d(4, 7, 2), nn.Conv1d(1, 4, 2, stride=2)
        self.first, self.last = nn.Conv1d(1, 4, 1), nn.Conv1d(7, LEVELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(torch.tanh(self.down(F.pad(x, (2, -2))))).repeat_interleave(2, 2)
        return self.last(torch.tanh(low + self.high(F.pad(self.first(x), (2, -1)))))


def sampler(module: nn.Module, length: int = 24) -> fastgen.Sampler:
    head = heads.Categorical(LEVELS, to_input="unit")
    return fastgen.Sampler(module, (1, length), head, "time", threads=1, machine=FAST)


def inputs_of_instructions(made: fastgen.Sampler) -> list[int]:
    program = made.program
    bodies = [instruction.body for instruction in program.computes]
    return [sum(s.length for s in program.segments[body.segment0 : body.segment1]) for body in bodies]


NETWORKS = {
    "skips": Skips,
    "skips, each sum read": lambda: Skips(look_at_sum=True),
    "upsampled": Upsampled,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_and_scores_are_those_of_the_module(name: str) -> None:
    made = sampler(built(NETWORKS[name]))
    x, log_prob = made.sample(5, seed=1, return_log_prob=True)
    assert torch.equal(x, made.sample_naive(5, seed=1))
    torch.testing.assert_close(log_prob.float(), made.log_prob(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [2, 4])
def test_all_skips_are_one_contraction(layers: int) -> None:
    made = sampler(built(lambda: Skips(layers)))
    assert 6 * layers in inputs_of_instructions(made)
    assert len(made.program.computes) == 3 + layers  # first, the gates, the skips, last


def test_a_sum_with_another_reader_is_computed_by_itself() -> None:
    made = sampler(built(lambda: Skips(4, look_at_sum=True)))
    assert 6 * 4 not in inputs_of_instructions(made)


def test_a_repeated_contraction_is_not_repeated() -> None:
    """Two outputs share one low-rate product; merged, each would compute it."""
    assert 4 + 8 not in inputs_of_instructions(sampler(built(Upsampled)))


def test_refresh_fills_a_merged_contraction_again() -> None:
    made = sampler(built(Skips))
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.add_(torch.linspace(-0.3, 0.2, parameter.numel()).reshape(parameter.shape))
    made.refresh()
    fresh = sampler(made.module)
    assert torch.equal(made.program.weights, fresh.program.weights)
    assert torch.equal(made.program.constants, fresh.program.constants)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(1, 12, 1), nn.Conv1d(12, LEVELS, 1)
        self.groups = nn.Conv1d(12, 12, 2, groups=3)
        nn.init.ones_(self.groups.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.groups(F.pad(self.first(F.pad(x, (1, -1))), (1, 0)))))


def test_groups_that_are_equal_now_keep_weights_of_their_own() -> None:
    made = sampler(Grouped().eval())
    with torch.no_grad():
        made.module.groups.weight.copy_(torch.randn(made.module.groups.weight.shape, generator=torch.Generator()))
    made.refresh()
    assert torch.equal(made.sample(5, seed=1), made.sample_naive(5, seed=1))


# ---- the pass alone, on a graph of ten nodes


EVENT = torch.randn(2, STEPS, 1, generator=torch.Generator().manual_seed(0))


def summed(branches: int = 3) -> tuple[Graph, list[Value], Value]:
    """A contraction of each of some gates, every other one with a bias, and their sum from left to right."""
    graph, _, x = sequence()
    parts = []
    for n in range(branches):
        gate = graph.map(
            "tanh", pointwise(graph, past(x, n + 1), weights(graph, f"gate{n}", torch.randn(1, 4))), channel=1
        )
        bias = weights(graph, f"bias{n}", torch.randn(3)) if n % 2 else None
        parts.append(pointwise(graph, gate, weights(graph, f"skip{n}", torch.randn(4, 3)), bias))
    total = parts[0]
    for part in parts[1:]:
        total = graph.map("add", total, part, channel=1)
    return graph, parts, total


def node_of(graph: Graph, value: Value) -> Node:
    return next(node for node in graph.nodes if node.base <= int(value.ids.max()) < node.base + 4 * node.rows)


@pytest.mark.parametrize("branches", [2, 3])
def test_a_chain_of_sums_contracts_all_inputs_at_once(branches: int) -> None:
    graph, _, total = summed(branches)
    node = node_of(graph, total)
    before = values(graph, EVENT)[node]
    merge_sums(graph, draws_of(graph, total))
    verify(graph)
    (run,) = node.runs
    assert run.opcode is None
    assert run.operands == []
    assert [term.piece.node.runs[0].opcode for term in run.terms] == ["tanh"] * branches
    assert run.matrix(graph.constants).shape == (4 * branches, 3)
    torch.testing.assert_close(values(graph, EVENT)[node], before, rtol=1e-12, atol=1e-12)


def test_inner_sums_are_left_as_they_were() -> None:
    graph, _, total = summed(3)
    inner = graph.nodes[node_of(graph, total).index - 1]
    merge_sums(graph, draws_of(graph, total))
    (run,) = inner.runs
    assert (run.opcode, run.terms, len(run.operands)) == ("add", None, 2)


def test_a_part_with_another_reader_is_not_merged() -> None:
    graph, parts, total = summed(2)
    graph.map("sigmoid", parts[0], channel=1)
    merge_sums(graph, draws_of(graph, total))
    verify(graph)
    assert node_of(graph, total).runs[0].opcode == "add"


def test_a_part_that_is_drawn_from_is_not_merged() -> None:
    graph, parts, total = summed(2)
    merge_sums(graph, draws_of(graph, total) + draws_of(graph, parts[0]))
    assert node_of(graph, total).runs[0].opcode == "add"


def test_a_part_that_lies_some_steps_back_is_not_merged() -> None:
    """The first step reads zeros in its place, where a contraction would add its bias."""
    graph, parts, _ = summed(2)
    total = graph.map("add", past(parts[1]), parts[0], channel=1)
    merge_sums(graph, draws_of(graph, total))
    verify(graph)
    assert node_of(graph, total).runs[0].opcode == "add"


def test_new_weights_reach_a_merged_contraction() -> None:
    graph, _, total = summed(3)
    node = node_of(graph, total)
    merge_sums(graph, draws_of(graph, total))
    fresh, _, fresh_total = summed(3)
    for name in graph.constants:
        graph.constants[name] = fresh.constants[name] = torch.randn(graph.constants[name].shape)
    expected = values(fresh, EVENT)[node_of(fresh, fresh_total)]
    torch.testing.assert_close(values(graph, EVENT)[node], expected, rtol=1e-6, atol=1e-6)
