"""A node that whole rows read at their start, and single steps as soon as it is ready, is computed twice.

No schedule may suit both: features of a pixel that the next step reads are ready only at that step, which for the last
pixel of a row begins after the rows that start there have been computed. A second node then computes the same for the
rows, so that these stay as cheap as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fastgen.generate.ir.graph import ChannelRun, Graph, Node, Piece
from fastgen.generate.ir.instructions import PIXEL
from fastgen.generate.schedule.placed import Placed


def compute_twice(graph: Graph, placed: Mapping[Node, Placed], node: Node) -> bool:
    """Gives a node that has no schedule a second one beside it, for its readers at the starts of rows.

    ``placed`` has the domains of its readers. Returns False, and changes nothing, where all of them, or none, run at
    the starts of rows, and for a node of a loop.
    """
    if node.loop:
        return False
    readers = [(other, number) for other in graph.nodes for number, run in enumerate(other.runs) if _reads(run, node)]
    early = [reader for reader in readers if _at_starts(placed, *reader)]
    if not early or len(early) == len(readers):
        return False
    with graph.at(node.place):
        again = graph.add("computed", node.rows_shape, node.channels, [replace(run) for run in node.runs])
    for other, number in early:
        _redirect(other.runs[number], node, again)
    others = [other for other in graph.nodes if other is not again]
    at = others.index(node) + 1
    graph.reorder([*others[:at], again, *others[at:]])
    return True


def _reads(run: ChannelRun, node: Node) -> bool:
    return any(read.node is node for read in (*run.pieces(), *run.key_rows()))


def _at_starts(placed: Mapping[Node, Placed], reader: Node, number: int) -> bool:
    domains = placed[reader].domains[number]
    return reader.runs[number].attention is None and all(domain.when != PIXEL for domain in domains)


def _redirect(run: ChannelRun, node: Node, again: Node) -> None:
    """Makes a run read the second node in the place of the first."""

    def moved(piece: Piece) -> Piece:
        if piece.node is not node:
            return piece
        return Piece(again, piece.rows, piece.slots, piece.stride, piece.length)

    if run.terms is not None:
        run.terms = [replace(term, piece=moved(term.piece)) for term in run.terms]
    run.operands = [[moved(piece) for piece in operand] for operand in run.operands]
