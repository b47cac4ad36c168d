"""When the keys and the values of attention are read."""

from __future__ import annotations

import numpy as np

from fastgen.generate.errors import CompileError
from fastgen.generate.ir.records import KeyRows
from fastgen.generate.schedule.iteration_domain import INFINITE


def first_reads(
    position: np.ndarray, keys: KeyRows, seen: np.ndarray, rows: np.ndarray, phases: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of a node that attention's ``rows`` read, and the first phase in which each is read.

    Args:
        position: of the node's rows, in sample 0.
        keys, seen: the node's rows as keys, and which query sees which.
        rows, phases: rows of the attention node, and when they are computed.
    """
    phase = np.full(len(seen), INFINITE)
    phase[rows % len(seen)] = phases
    first = np.where(seen, phase[:, None], INFINITE).min(0)
    read = first < INFINITE
    positions = position[keys.rows[0]][read]
    if (positions < 0).any():
        node = keys.node
        raise CompileError(f"cells that depend on no input have no place in time at {node.name}, {node.where}")
    return positions, first[read]


def oldest_reads(
    position: np.ndarray, keys: KeyRows, seen: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first position that each of attention's ``rows`` reads, and for which rows there is one."""
    first = np.where(seen, position[keys.rows[0]], INFINITE).min(1, initial=INFINITE)[rows % len(seen)]
    some = first < INFINITE
    return first[some], some
