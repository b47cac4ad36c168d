"""Checks a finished schedule: nothing is computed before it is ready, or after it is read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastgen.generate.ir.graph import Graph, Node, Piece
from fastgen.generate.ir.instructions import PROLOGUE
from fastgen.generate.ir.records import KeyRows
from fastgen.generate.schedule.iteration_domain import INFINITE
from fastgen.generate.schedule.key_reads import first_reads
from fastgen.generate.schedule.placed import Placed, follows, source_positions
from fastgen.generate.schedule.unplaced import unplaced


def check_schedule(graph: Graph, placed: Mapping[Node, Placed]) -> None:
    """Raises CompileError for the first node of which a cell is computed before it is ready, or after it is read."""
    for node, own in placed.items():
        for run, domains in zip(node.runs, own.domains, strict=True):
            for domain in domains:
                rows = own.row[domain.positions]
                sound = (2 * run.ready[rows].astype(np.int64) - (domain.when == PROLOGUE) <= domain.phases).all()
                for piece in run.pieces():
                    sound = sound and _computed(placed, piece, rows, domain.phases - follows(piece, node))
                for keys in run.key_rows():
                    phases = domain.phases - follows(keys, node)
                    sound = sound and _keys_computed(placed, keys, run.attention.seen, rows, phases)
                if not sound:
                    raise unplaced(graph, node)


def _computed(placed: Mapping[Node, Placed], piece: Piece, rows: np.ndarray, phases: np.ndarray) -> bool:
    if piece.node.kind != "computed":
        return True
    source = placed[piece.node]
    positions = source_positions(placed, piece, rows)
    valid = positions >= 0
    slots = piece.slots[rows]
    varies = piece.varies
    for number in piece.source_numbers():
        at = np.full(source.positions, INFINITE)
        for domain in source.domains[number]:
            at[domain.positions] = domain.phases
        here = valid & (piece.node.run_of_slot[slots] == number) if varies else valid
        if (at[positions[here]] > phases[here]).any():
            return False
    return True


def _keys_computed(
    placed: Mapping[Node, Placed], keys: KeyRows, seen: np.ndarray, rows: np.ndarray, phases: np.ndarray
) -> bool:
    source = placed[keys.node]
    positions, first = first_reads(source.position, keys, seen, rows, phases)
    for domain in (domain for domains in source.domains for domain in domains):
        at = np.full(source.positions, -2)
        at[domain.positions] = domain.phases
        if (at[positions] > first).any():
            return False
    return True
