"""Finds the copies of nodes that a loop over positions made: the same nodes again and again, each time later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fastgen.generate.ir.graph import ChannelRun, Graph, Node, Recipe
from fastgen.generate.ir.records import halves

_LEAST = 4
"""Copies that a loop must have made to be worth rolling up."""

BY_NUMBER = {"addc": "add", "mulc": "mul"}
"""Operations with a number that may differ from copy to copy, and those with an operand in its place."""


def repeated_nodes(graph: Graph) -> list[list[Node]]:
    """Returns for every node of the bodies of loops its copies, in the order of time."""
    nodes = [node for node in graph.nodes if node.kind == "computed"]
    known: dict[tuple, int] = {}
    tokens = np.array([known.setdefault(_signature(node), len(known)) for node in nodes], np.int64)
    found, at = [], 0
    while at < len(nodes):
        for stop, period in _candidates(tokens, at):
            copies = [nodes[at + offset : stop : period] for offset in range(period)]
            if _is_loop(graph, copies):
                found += [kept for members in copies if len(kept := _from_the_first_step(members)) > 1]
                at = stop
                break
        else:
            at += 1
    return found


def _signature(node: Node) -> tuple:
    """Returns what is equal for copies of a node: all but where they read."""
    if not halves(node.uses):
        return (node.index,)
    runs = []
    for run in node.runs:
        if run.attention is not None:
            return (node.index,)
        computed = (run.opcode, None if run.opcode in BY_NUMBER else run.x, run.y)
        if run.terms is not None:
            computed = (run.columns.tobytes(), run.matrix.sources, None if run.bias is None else run.bias.sources)
        runs.append((run.slot, run.length, computed))
    return (node.rows_shape, node.channels, *runs)


def _candidates(tokens: np.ndarray, at: int) -> list[tuple[int, int]]:
    """Returns (end, period) of the repetitions from ``at`` on: the longest first, then those of the shortest period."""
    found = []
    for period in (np.flatnonzero(tokens[at + 1 :] == tokens[at]) + 1).tolist():
        if at + _LEAST * period > len(tokens):
            break
        differs = tokens[at : len(tokens) - period] != tokens[at + period :]
        length = int(differs.argmax()) if differs.any() else len(differs)
        if length >= (_LEAST - 1) * period:
            found.append((at + period + length, period))
    return sorted(found, key=lambda candidate: (-candidate[0], candidate[1]))


def _is_loop(graph: Graph, copies: list[list[Node]]) -> bool:
    """Whether the copies compute alike, and each is ready later than the one before or depends on no step."""
    steady = {node: number for members in copies if not _advances(members) for number, node in enumerate(members)}
    if len(steady) == sum(map(len, copies)) or any(node.uses.any() and _ready(node).any() for node in steady):
        return False
    for node, number in steady.items():  # what goes on without a step would have no order in time
        read = [piece.node for run in node.runs for piece in run.pieces()]
        if any(steady.get(source, number) != number for source in read):
            return False
    return all(_alike(graph, members[-1], other) for members in copies for other in members[:-1])


def _ready(node: Node) -> np.ndarray:
    return np.max([run.ready for run in node.runs], 0)


def _advances(members: Sequence[Node]) -> bool:
    """Whether no row of a copy is ready before that of the copy before, and some are later."""
    for before, after in pairwise(members):
        moving = (before.uses > 0) & (after.uses > 0)
        later = _ready(after)[moving] - _ready(before)[moving]
        if moving.any() and ((later < 0).any() or not (later > 0).any()):
            return False
    return any((node.uses > 0).any() for node in members)


def _from_the_first_step(members: list[Node]) -> list[Node]:
    """Leaves out the first copies that depend on no input and would belong to steps before the first."""
    moving = [number for number, node in enumerate(members) if node.uses.any()]
    if not moving or moving[0] == 0 or len(moving) < 2:
        return members
    first, second = (int(_ready(members[number]).max()) for number in moving[:2])
    return members[moving[0] - first // max(second - first, 1) :] if first < moving[0] * (second - first) else members


def _alike(graph: Graph, a: Node, b: Node) -> bool:
    return all(
        first.terms is None or (_same(graph, first.matrix, second.matrix) and _same_bias(graph, first, second))
        for first, second in zip(a.runs, b.runs, strict=True)
    )


def _same_bias(graph: Graph, a: ChannelRun, b: ChannelRun) -> bool:
    if a.bias is None or b.bias is None:
        return a.bias is b.bias
    return _same(graph, a.bias, b.bias)


def _same(graph: Graph, a: Recipe, b: Recipe) -> bool:
    """Whether two recipes of the same constants always give the same values."""
    if a is b:
        return True
    probes = list(_probes(graph, a.sources))
    first, second = a.function(*probes), b.function(*probes)
    return first.shape == second.shape and torch.equal(first, second)


def _probes(graph: Graph, sources: Sequence[str]) -> Iterator[Tensor]:
    """Yields numbers in the place of constants."""
    for number, name in enumerate(sources):
        shape = graph.constants[name].shape
        yield (torch.arange(shape.numel(), dtype=torch.float64) * 0.37 + number).sin().reshape(shape) + 2
