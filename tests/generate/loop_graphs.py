"""Graphs of loops over positions, one copy of the body's nodes after the other, for tests of single passes."""

from __future__ import annotations

import torch

from fastgen.generate.frontend.rules.contraction import contract_last
from fastgen.generate.ir.graph import Graph, Recipe, Value
from tests.generate.small_graphs import draws_of, scalar, sequence, values, weights

CHANNELS = 3


def at(value: Value, t: int) -> Value:
    return Value(value.ids[:, :, t : t + 1])


def product(graph: Graph, x: Value, recipe: Recipe, bias: Recipe | None = None) -> Value:
    """A product over the channels ``[2, C, steps]``."""
    return Value(contract_last(graph, Value(x.ids.movedim(1, -1)), recipe, bias).ids.movedim(-1, 1))


def stacked(parts: list[Value]) -> Value:
    return Value(torch.cat([part.ids for part in parts], 2))


def matrix(graph: Graph, name: str, rows: int) -> Recipe:
    return weights(graph, name, torch.randn(rows, CHANNELS, generator=torch.Generator().manual_seed(rows)))


def plain(graph: Graph, x: Value, steps: int) -> list[Value]:
    """``h = tanh(W [x_t, h])`` from zeros."""
    recipe = matrix(graph, "w", 2 * CHANNELS)
    h, found = Value(torch.zeros_like(at(x, 0).ids)), []
    for t in range(steps):
        h = graph.map("tanh", product(graph, Value(torch.cat([at(x, t).ids, h.ids], 1)), recipe))
        found.append(h)
    return found


def other_start(graph: Graph, x: Value, steps: int) -> list[Value]:
    """The state begins as a product that the loop has not; its matrix meets this state and the loop's own."""
    recipe = matrix(graph, "w", 2 * CHANNELS)
    h, found = product(graph, at(x, 0), matrix(graph, "first", CHANNELS)), []
    for t in range(steps):
        h = graph.map("tanh", product(graph, Value(torch.cat([at(x, t).ids, h.ids], 1)), recipe))
        found.append(h)
    return found


def constants(graph: Graph, x: Value, steps: int) -> list[Value]:
    """Another constant, and another number, at every step."""
    h, found = graph.map("tanh", at(x, 0)), []
    for t in range(steps):
        h = graph.map("add", graph.map("mul", h, scalar(0.5 + t)), graph.map("mulc", at(x, t), x=1.0 + t))
        found.append(h)
    return found


def two_states(graph: Graph, x: Value, steps: int) -> list[Value]:
    """Two nodes of one kind in every iteration, each reading the other's last one."""
    a, b, found = graph.map("tanh", at(x, 0)), graph.map("sigmoid", at(x, 0)), []
    for t in range(steps):
        a, b = graph.map("tanh", graph.map("add", b, at(x, t))), graph.map("tanh", graph.map("mul", a, at(x, t)))
        found.append(graph.map("add", a, b))
    return found


LOOPS = {make.__name__: make for make in (plain, other_start, constants, two_states)}


def loop(name: str, steps: int = 6):
    graph, event, x = sequence(CHANNELS, steps, shift=1)
    out = product(graph, stacked(LOOPS[name](graph, x, steps)), matrix(graph, "out", CHANNELS))
    return graph, event, draws_of(graph, out, steps), out


def result(graph: Graph, draws, steps: int) -> torch.Tensor:
    event = torch.randn(2, steps, CHANNELS, generator=torch.Generator().manual_seed(1))
    return values(graph, event)[draws[0].pieces[0].node]
