"""Cells that depend on no input and have no step: networks that pad by their whole reach, folded or not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from fastgen.generate import CompileError, heads
from fastgen.generate.ir.graph import Graph, Node, Value
from fastgen.generate.ir.verify_graph import verify
from fastgen.generate.orders import make_order
from fastgen.generate.passes.fold_constant_cells import fold_constant_cells
from tests.generate.compiled import FAST
from tests.generate.public_sequences import wavenet_batch_folded
from tests.generate.seeded import built
from tests.generate.small_graphs import STEPS, draws_of, past, pointwise, sequence, values, weights

LEVELS = 7


class PaddedOnce(nn.Module):
    """All padding at the input, then valid convolutions."""

    def __init__(self, dilations: tuple[int, ...] = (1, 2, 4)) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, 5, 1)
        self.layers = nn.ModuleList(nn.Conv1d(5, 10, 2, dilation=d) for d in dilations)
        self.end = nn.Conv1d(5, LEVELS, 1)
        self.pad = sum(dilations) + 1

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(F.pad(x, (self.pad, -1)))
        for layer in self.layers:
            a, b = layer(x).chunk(2, 1)
            x = torch.tanh(a) * torch.sigmoid(b) + x[:, :, layer.dilation[0] :]
        return self.end(x)


class PaddedTwice(PaddedOnce):
    """Zeros before the input and zeros before the first layer: the cells of the padding differ."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.start(F.pad(x, (2, -1))), (self.pad - 2, 0))
        for layer in self.layers:
            a, b = layer(x).chunk(2, 1)
            x = torch.tanh(a) * torch.sigmoid(b) + x[:, :, layer.dilation[0] :]
        return self.end(x)


NETWORKS = {
    "once": lambda: (built(PaddedOnce), (1,), heads.Categorical(LEVELS, to_input="unit")),
    "twice": lambda: (built(PaddedTwice), (1,), heads.Categorical(LEVELS, to_input="unit")),
    "folded": lambda: (lambda module, _, head, *rest: (module, (), head))(*wavenet_batch_folded()),
}


def sampler(name: str, length: int, **options) -> fastgen.Sampler:
    module, channels, head = NETWORKS[name]()
    return fastgen.Sampler(module, (*channels, length), head, "time", threads=1, **({"machine": FAST} | options))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("length", [2, 3, 4, 11, 29])
def test_samples_and_scores_are_those_of_the_module(name: str, length: int) -> None:
    made = sampler(name, length)
    x, log_prob = made.sample(3, seed=1, return_log_prob=True)
    assert torch.equal(x, made.sample_naive(3, seed=1))
    torch.testing.assert_close(log_prob.float(), made.log_prob(x).float())


@pytest.mark.parametrize("name", ["once", "twice"])
@pytest.mark.parametrize("machine", ["reference", FAST])
def test_an_event_of_one_step_depends_on_no_input(name: str, machine: str) -> None:
    made = sampler(name, 1, machine=machine)
    assert torch.equal(made.sample(40, seed=1), made.sample_naive(40, seed=1))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_program_does_not_grow_with_the_length(name: str) -> None:
    short, long = sampler(name, 29).program, sampler(name, 41).program
    assert len(short.instructions) == len(long.instructions) < 31
    assert short.constants.shape == long.constants.shape


def test_a_folded_batch_has_one_program_for_every_length() -> None:
    made = sampler("folded", 400)
    assert made.program.steps > 400
    assert len(made.program.instructions) < 31
    x = torch.randint(0, made.head.levels, (2, 400), generator=torch.Generator().manual_seed(0))
    _, log_prob = made.sample(2, known=x, known_mask=torch.ones(x.shape, dtype=torch.bool), return_log_prob=True)
    torch.testing.assert_close(log_prob.float(), made.log_prob(x).float())


@pytest.mark.parametrize("name", NETWORKS)
def test_refresh_evaluates_the_constants_again(name: str) -> None:
    made = sampler(name, 23)
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.add_(torch.linspace(-0.2, 0.3, parameter.numel()).reshape(parameter.shape))
    made.refresh()
    module, channels, head = made.module, made.event_shape[:-1], made.head
    fresh = fastgen.Sampler(module, (*channels, 23), head, "time", threads=1, machine=FAST)
    assert torch.equal(made.program.constants, fresh.program.constants)
    assert torch.equal(made.sample(3, seed=2), fresh.sample(3, seed=2))


def test_equal_values_by_chance_are_not_taken_for_equal_cells() -> None:
    module, channels, head = NETWORKS["twice"]()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    made = fastgen.Sampler(module, (*channels, 23), head, "time", threads=1, machine=FAST)
    with torch.no_grad():
        for number, (name, parameter) in enumerate(module.named_parameters()):
            if name.endswith("bias"):
                parameter.add_(0.3 * (number + 1))
    made.refresh()
    x, log_prob = made.sample(3, seed=2, return_log_prob=True)
    assert torch.equal(x, made.sample_naive(3, seed=2))
    torch.testing.assert_close(log_prob.float(), made.log_prob(x).float())


# ---- the pass alone, on a graph of ten nodes


EVENT = torch.randn(2, STEPS, 1, generator=torch.Generator().manual_seed(0))
ORDER = make_order("time", (STEPS,))


def padded(pad: int) -> tuple[Graph, list[Node], Value]:
    """``tanh`` of a biased layer over ``pad`` zeros and the event, whose cells at t and at t + pad - 1 step t adds up.

    Of the padding's ``pad`` cells the last has step 0; those before it belong to steps before the first.
    """
    graph, _, x = sequence()
    before = Value(F.pad(x.ids, (pad, -1)))
    cells = pointwise(graph, before, weights(graph, "first", torch.randn(1, 4)), weights(graph, "bias", torch.randn(4)))
    cells = graph.map("tanh", cells, channel=1)
    first, last = Value(cells.ids[:, :, :STEPS]), Value(cells.ids[:, :, pad - 1 :])
    total = graph.map("add", first, last, channel=1)
    out = pointwise(graph, total, weights(graph, "out", torch.randn(4, 2)))
    return graph, list(graph.nodes), out


def test_cells_before_the_first_step_are_read_from_constants() -> None:
    graph, nodes, out = padded(3)
    before = values(graph, EVENT)
    folded = fold_constant_cells(graph, ORDER, draws_of(graph, out))
    verify(graph)
    tanh, total = nodes[2], nodes[3]
    kept, still = total.runs[0].operands[0]
    assert kept.node is tanh
    assert still.node.kind == "constant"
    assert (kept.rows[:3].tolist(), still.rows[:3].tolist()) == ([-1, -1, 2], [0, 0, -1])
    assert still.node.rows == 1, "both cells are computed of zeros and the bias: one row holds them"
    assert len(total.runs[0].operands[1]) == 1, "the other operand reads no padding before the first step"
    assert {name for name, _ in folded} <= graph.constants.keys()
    torch.testing.assert_close(values(graph, EVENT)[nodes[4]], before[nodes[4]], rtol=1e-6, atol=1e-6)


def test_new_parameters_give_new_constants() -> None:
    graph, nodes, out = padded(4)
    folded = fold_constant_cells(graph, ORDER, draws_of(graph, out))
    fresh, fresh_nodes, _ = padded(4)
    for name in ("first", "bias", "out"):
        graph.constants[name] = fresh.constants[name] = torch.randn(graph.constants[name].shape)
    for name, evaluate in folded:
        graph.constants[name] = evaluate(graph.constants)
    expected = values(fresh, EVENT)[fresh_nodes[4]]
    torch.testing.assert_close(values(graph, EVENT)[nodes[4]], expected, rtol=1e-6, atol=1e-6)


def test_padding_that_has_a_step_stays() -> None:
    graph, nodes, out = padded(1)
    assert fold_constant_cells(graph, ORDER, draws_of(graph, out)) == []
    assert graph.nodes == nodes


def test_an_index_that_depends_on_no_input_is_refused() -> None:
    graph, _, x = sequence()
    cells = graph.map("relu", Value(F.pad(past(x).ids, (3, 0))), channel=1)
    cells = graph.map("relu", cells, channel=1)
    read = torch.cat([cells.ids[:, 0, :STEPS]]).reshape(-1).contiguous().numpy()
    table = weights(graph, "table", torch.randn(5, 2))
    looked_up = graph.contract((2, STEPS), [(read, 1, 1, torch.arange(5).numpy(), True)], table, None)
    total = graph.map(
        "add", Value(looked_up.ids.movedim(-1, 1)), Value(cells.ids[:, :, 3:].expand(-1, 2, -1)), channel=1
    )
    with pytest.raises(CompileError, match="an index that depends on no input is computed"):
        fold_constant_cells(graph, ORDER, draws_of(graph, total))
