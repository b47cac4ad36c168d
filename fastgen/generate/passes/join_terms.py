"""Joins the terms of a contraction that read neighbouring channels of one tensor."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from fastgen.generate.ir.graph import Graph, Piece
from fastgen.generate.ir.records import Term


def join_terms(graph: Graph) -> None:
    """Makes one term of those whose channels follow one another, in the same rows.

    The channels of a masked dense layer become known one by one, so that each is a run of its own: a unit that sees a
    hundred of them has a hundred terms, and all units of a layer together as many as the square of its width. Where
    every cell is placed by itself nothing is gained by their being apart.
    """
    for node in graph.nodes:
        known: dict[tuple[Term, Term], bool] = {}  # the runs of a node share terms
        for run in node.runs:
            if run.terms is not None and len(run.terms) > 1:
                run.terms = _joined(run.terms, known)


def _joined(terms: list[Term], known: dict[tuple[Term, Term], bool]) -> list[Term]:
    joined: list[list[Term]] = []
    for before, term in pairwise([None, *terms]):
        if before is not None and (before, term) not in known:
            known[before, term] = _goes_on(before, term)
        if before is not None and known[before, term]:
            joined[-1].append(term)
        else:
            joined.append([term])
    return [_one(group) for group in joined]


def _goes_on(first: Term, second: Term) -> bool:
    """Whether the second reads the channels behind those of the first."""
    a, b = first.piece, second.piece
    if first.index or second.index or a.node is not b.node or a.varies or b.varies:
        return False
    if (a.stride != 1 and a.length > 1) or (b.stride != 1 and b.length > 1) or not np.array_equal(a.rows, b.rows):
        return False
    here = a.rows >= 0
    return bool(here.any()) and int(a.slots[here][0]) + a.length == int(b.slots[here][0])


def _one(terms: list[Term]) -> Term:
    if len(terms) == 1:
        return terms[0]
    first = terms[0].piece
    length = sum(term.piece.length for term in terms)
    return Term(
        Piece(first.node, first.rows, first.slots, 1, length), np.concatenate([term.weight_rows for term in terms])
    )
