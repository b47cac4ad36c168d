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
    computed = _Computed(placed)
    for node, own in placed.items():
        for run, domains in zip(node.runs, own.domains, strict=True):
            for domain in domains:
                rows = own.row[domain.positions]
                sound = (2 * run.ready[rows].astype(np.int64) - (domain.when == PROLOGUE) <= domain.phases).all()
                for piece in run.pieces():
                    sound = sound and computed.before(piece, rows, domain.phases - follows(piece, node))
                for keys in run.key_rows():
                    phases = domain.phases - follows(keys, node)
                    sound = sound and _keys_computed(placed, keys, run.attention.seen, rows, phases)
                if not sound:
                    raise unplaced(graph, node)


class _Computed:
    """When the positions of nodes are computed."""

    def __init__(self, placed: Mapping[Node, Placed]) -> None:
        self.placed = placed
        self._phases: dict[tuple[Node, int], np.ndarray] = {}

    def phases(self, node: Node, number: int) -> np.ndarray:
        """Returns the phase in which each position of a run is computed; INFINITE for those that are not."""
        if (node, number) not in self._phases:
            at = np.full(self.placed[node].positions, INFINITE)
            for domain in self.placed[node].domains[number]:
                at[domain.positions] = domain.phases
            self._phases[node, number] = at
        return self._phases[node, number]

    def before(self, piece: Piece, rows: np.ndarray, phases: np.ndarray) -> bool:
        """Whether what rows of a reader read is computed in the given phases at the latest."""
        if piece.node.kind != "computed":
            return True
        positions = source_positions(self.placed, piece, rows)
        valid = positions >= 0
        slots = piece.slots[rows]
        varies = piece.varies
        for number in piece.source_numbers():
            here = valid & (piece.node.run_of_slot[slots] == number) if varies else valid
            if (self.phases(piece.node, number)[positions[here]] > phases[here]).any():
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
