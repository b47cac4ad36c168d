"""Finds the copies of nodes that a loop over positions made: the same nodes again and again, each time later."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from fastgen.generate.ir.graph import ChannelRun, Graph, Node
from fastgen.generate.ir.records import halves, same_values
from fastgen.generate.ir.repetitions import repetitions_from

BY_NUMBER = {"addc": "add", "mulc": "mul"}
"""Operations with a number that may differ from copy to copy, and those with an operand in its place."""


def repeated_nodes(graph: Graph, needed: Mapping[Node, np.ndarray]) -> list[list[Node]]:
    """Returns for every node of the bodies of loops its copies, in the order of time.

    ``needed``: the rows (bool ``[rows]``) of every computed node that the draws need.
    """
    nodes = [node for node in graph.nodes if node.kind == "computed"]
    known: dict[tuple, int] = {}
    tokens = np.array([known.setdefault(_signature(node), len(known)) for node in nodes], np.int64)
    found, at = [], 0
    while at < len(nodes):
        for repetition in repetitions_from(tokens, at):
            copies = [nodes[n : repetition.stop : repetition.period] for n in range(at, at + repetition.period)]
            if _is_loop(graph, copies, needed):
                found += [kept for members in copies if len(kept := _from_the_first_step(members)) > 1]
                at = repetition.stop
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


def _is_loop(graph: Graph, copies: list[list[Node]], needed: Mapping[Node, np.ndarray]) -> bool:
    """Whether the copies compute alike, and each is ready later than the one before or depends on no step."""
    if not _over_positions(graph, copies, needed):
        return False
    steady = {node: number for members in copies if not _advances(members) for number, node in enumerate(members)}
    if len(steady) == sum(map(len, copies)) or any(node.uses.any() and _ready(node).any() for node in steady):
        return False
    for node, number in steady.items():  # what goes on without a step would have no order in time
        read = [piece.node for run in node.runs for piece in run.pieces()]
        if any(steady.get(source, number) != number for source in read):
            return False
    return all(_alike(graph, members[-1], other) for members in copies for other in members[:-1])


def _over_positions(graph: Graph, copies: list[list[Node]], needed: Mapping[Node, np.ndarray]) -> bool:
    """Whether the copies share out the positions of the event: layers of shared weights each have all of them.

    The columns of a skewed image have more rows than these, but no more that move and that the draws need.
    """
    positions = math.prod(graph.grid) if graph.grid else math.inf
    for members in copies:
        half = members[0].rows // 2
        if len(members) * half > positions + half:
            if len(graph.grid) != 2:
                return False
            moving = sum(int(((node.uses > 0) & needed[node])[:half].sum()) for node in members)
            if moving > positions + half:
                return False
    return True


def _ready(node: Node) -> np.ndarray:
    return np.max([run.ready for run in node.runs], 0)


def _advances(members: Sequence[Node]) -> bool:
    """Whether no row of a copy is ready before that of the copy before, and some are later; the second need not be."""
    for number, (before, after) in enumerate(pairwise(members)):
        moving = (before.uses > 0) & (after.uses > 0)
        later = _ready(after)[moving] - _ready(before)[moving]
        if moving.any() and ((later < 0).any() or (number > 0 and not (later > 0).any())):
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
        first.terms is None
        or (same_values(first.matrix, second.matrix, graph.constants) and _same_bias(graph, first, second))
        for first, second in zip(a.runs, b.runs, strict=True)
    )


def _same_bias(graph: Graph, a: ChannelRun, b: ChannelRun) -> bool:
    if a.bias is None or b.bias is None:
        return a.bias is b.bias
    return same_values(a.bias, b.bias, graph.constants)
