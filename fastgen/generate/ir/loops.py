"""Loops: nodes that read one another at earlier rows, as a recurrence does, found and laid side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from fastgen.generate.ir.graph import Graph, Node


def order_loops(graph: Graph, rank: Mapping[Node, int] | None = None) -> None:
    """Numbers the loops (``Node.loop``) and puts the nodes in an order in which only a loop's nodes read later ones.

    The nodes of a loop lie side by side, in the order of ``rank`` (by default as they were added): what a cell reads
    of its own row must come before it.
    """
    nodes = [node for node in graph.nodes if node.kind != "replaced"]
    rank = {node: node.index for node in nodes} if rank is None else rank
    sources = {node: _sources(node) for node in nodes}
    components = _components(sorted(nodes, key=rank.__getitem__), sources)
    found = 0
    for members in components:
        repeats = len(members) > 1 or members[0] in sources[members[0]]
        found += repeats
        for node in members:
            node.loop = found if repeats else 0
    graph.reorder([node for members in components for node in sorted(members, key=rank.__getitem__)])


def _sources(node: Node) -> set[Node]:
    return {read.node for run in node.runs for read in (*run.pieces(), *run.key_rows())}


def _components(nodes: Iterable[Node], sources: Mapping[Node, set[Node]]) -> list[list[Node]]:
    """Returns the strongly connected components, those that are read before those that read them (Tarjan, 1972)."""
    number: dict[Node, int] = {}
    lowest: dict[Node, int] = {}
    open_nodes: list[Node] = []
    is_open: set[Node] = set()
    components = []

    def enter(node: Node) -> tuple[Node, list[Node]]:
        number[node] = lowest[node] = len(number)
        open_nodes.append(node)
        is_open.add(node)
        return node, sorted(sources[node], key=lambda source: source.index, reverse=True)

    for first in nodes:
        if first in number:
            continue
        path = [enter(first)]
        while path:
            node, rest = path[-1]
            if rest:
                source = rest.pop()
                if source not in number:
                    path.append(enter(source))
                elif source in is_open:
                    lowest[node] = min(lowest[node], number[source])
                continue
            path.pop()
            if path:
                lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[node])
            if lowest[node] == number[node]:
                members = [open_nodes.pop()]
                while members[-1] is not node:
                    members.append(open_nodes.pop())
                components.append(members)
                is_open.difference_update(members)
    return components


def loops_of(graph: Graph) -> list[list[Node]]:
    """Returns the nodes in order, those of a loop together and every other by itself."""
    found: list[list[Node]] = []
    for node in graph.nodes:
        if node.loop and found and found[-1][0].loop == node.loop:
            found[-1].append(node)
        else:
            found.append([node])
    return found


def settle_times(graph: Graph, members: Iterable[Node]) -> None:
    """Sets the times of nodes that read one another: the least that follow from what they read.

    The computation starts from times at which nothing is known, and ends when no time changes any more; it ends,
    because times only grow and none exceeds the greatest that comes from outside.
    """
    runs = [(node, run) for node in members for run in node.runs]
    for node, run in runs:
        run.ready, run.uses = graph.still(node.rows)
    changed = True
    while changed:
        changed = False
        for node, run in runs:
            ready, uses = graph.times(run.latest(), node.rows)
            if not (np.array_equal(ready, run.ready) and np.array_equal(uses, run.uses)):
                run.ready, run.uses, changed = ready, uses, True
