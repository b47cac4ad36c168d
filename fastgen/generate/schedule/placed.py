"""Nodes with their positions and deadlines, and draws, while they are scheduled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fastgen.generate.errors import CompileError, NotCausalError
from fastgen.generate.ir.graph import Node, Piece
from fastgen.generate.ir.records import KeyRows
from fastgen.generate.schedule.iteration_domain import ScheduledDomain


@dataclass(eq=False)
class Placed:
    """A node with the positions of the first sample and the deadlines that its consumers set."""

    node: Node
    position: np.ndarray  # [rows] position of the row in sample 0, else -1
    row: np.ndarray  # [positions] row
    height: int
    """Rows of a frame; all of them but for videos."""
    width: int
    deadline: list[np.ndarray]  # per run, [positions]
    soft_deadline: list[np.ndarray]
    domains: list[list[ScheduledDomain]]
    fed: bool = False
    """Whether it depends on the event, if only on the value before the first element."""
    looped: bool = False
    """Whether it is of a loop, or depends on one."""

    @property
    def positions(self) -> int:
        return len(self.row)


@dataclass(eq=False)
class DrawSite:
    """One draw pattern: its parameters are a run of pieces over the rows of its domain."""

    channel0: int
    channels: int
    positions: np.ndarray  # natural position per row
    steps: np.ndarray
    pieces: list[Piece]
    domain: ScheduledDomain | None = None


def source_positions(placed: Mapping[Node, Placed], piece: Piece, rows: np.ndarray) -> np.ndarray:
    """Returns the positions in ``piece.node`` that the reader's ``rows`` read, -1 for none.

    Raises:
        CompileError: a cell that is read is none of the first sample's.
    """
    source = piece.rows[rows]
    position = placed[piece.node].position[source]
    lost = (source >= 0) & (position < 0)
    if lost.any():
        node = piece.node
        if any((run.uses[source[lost]] & 2).any() for run in node.runs):
            raise NotCausalError(f"the network mixes the samples of the batch at {node.name}, {node.where}")
        raise CompileError(f"cells that depend on no input have no place in time at {node.name}, {node.where}")
    return np.where(source >= 0, position, -1)


def follows(read: Piece | KeyRows, reader: Node) -> bool:
    """Whether what is read is computed, within a phase, after its reader: in a loop."""
    return read.node.kind == "computed" and read.node.index >= reader.index
