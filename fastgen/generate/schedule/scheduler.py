"""The scheduler: from ready times and deadlines to iteration domains and access maps.

Time is counted in phases: the prologue is -1, the start of the row of step t is 2 t, step t itself 2 t + 1. A cell is
computed in a phase no earlier than it is ready and no later than its first consumer; within a phase, in the order of
the graph. Nodes are placed from the outputs back, each run of channels as late as its deadlines allow, on a domain
whose cells keep one affine relation to time: whole rows where that is legal, one offset from the step otherwise. What a
node of a loop reads of a later one, or of itself, must be computed in an earlier phase.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastgen.generate.errors import CompileError, NotCausalError
from fastgen.generate.ir.graph import ChannelRun, Graph, Node, Piece
from fastgen.generate.ir.instructions import PIXEL, PROLOGUE, ROW
from fastgen.generate.ir.loops import loops_of
from fastgen.generate.ir.records import halves
from fastgen.generate.orders import Order
from fastgen.generate.schedule.affine_fit import affine, regular_times
from fastgen.generate.schedule.check_schedule import check_schedule
from fastgen.generate.schedule.iteration_domain import INFINITE, Access, Cells, ScheduledDomain
from fastgen.generate.schedule.key_reads import first_reads
from fastgen.generate.schedule.placed import DrawSite, Placed, follows, source_positions
from fastgen.generate.schedule.unplaced import unplaced

_PERIODS_2D = [(1, 1), (2, 2), (1, 2), (2, 1), (4, 4), (3, 3), (1, 3), (1, 4), (2, 4), (4, 2), (8, 8), (6, 6), (2, 6)]
_PERIODS_1D = [(1, m) for m in (*range(1, 33), 40, 48, 64, 80, 96, 100, 128, 160, 200, 256, 320, 400, 441, 512)]


class Scheduler:
    def __init__(self, graph: Graph, order: Order, draws: list[DrawSite]) -> None:
        self.graph, self.order, self.draws = graph, order, draws
        self.row_length = order.row_length
        self.has_rows = order.regular and order.length > order.row_length
        self.placed: dict[Node, Placed] = {}

    def run(self) -> dict[Node, Placed]:
        for node in self.graph.nodes:
            self.placed[node] = self._enter(node)
        for draw in self.draws:
            self._place_draw(draw)
        for members in reversed(loops_of(self.graph)):
            if members[0].loop:
                self._place_loop(members)
            elif members[0].kind == "computed":
                self._place_node(members[0])
        check_schedule(self.graph, self.placed)
        return self.placed

    def _place_loop(self, members: list[Node]) -> None:
        """Places nodes that read one another: again, until what they ask of each other no longer changes."""
        placing = self._pass_on_deadlines
        while True:
            before = [deadline.copy() for node in members for deadline in self.placed[node].deadline]
            for node in reversed(members):
                placing(node)
            after = [deadline for node in members for deadline in self.placed[node].deadline]
            if all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)):
                if placing == self._place_node:
                    return
                placing = self._place_node

    def _pass_on_deadlines(self, node: Node) -> None:
        """Gives what a node of a loop reads there the node's own deadlines, the latest that it may have."""
        placed = self.placed[node]
        for run, deadline in zip(node.runs, placed.deadline, strict=True):
            live = np.flatnonzero(deadline < INFINITE)
            for piece in run.pieces() if len(live) else ():
                if piece.node.loop == node.loop:
                    self._constrain(piece, placed.row[live], deadline[live] - follows(piece, node))

    def _place_node(self, node: Node) -> None:
        placed = self.placed[node]
        for number, run in enumerate(node.runs):
            if (placed.deadline[number] < INFINITE).any():
                placed.domains[number] = self._place(placed, number, run)

    # ---- positions

    def _enter(self, node: Node) -> Placed:
        rows = node.rows
        position = np.full(rows, -1, np.int32)
        if node.kind == "constant":
            row = np.arange(rows)
        elif halves(node.uses):
            row = np.arange(rows // 2)
        else:
            row = np.flatnonzero(node.uses == 1)
            if not self.has_rows:
                row = row[np.argsort(np.max([run.ready[row] for run in node.runs], 0), kind="stable")]
        position[row] = np.arange(len(row))
        runs = len(node.runs)
        far = [np.full(len(row), INFINITE) for _ in range(runs)]
        before = [self.placed[piece.node] for run in node.runs for piece in run.pieces() if piece.node in self.placed]
        return Placed(
            node, position, row, self._width(node, len(row)), far, [f.copy() for f in far], [[] for _ in range(runs)],
            node.kind == "input" or any(source.fed for source in before),
        )  # fmt: skip

    def _width(self, node: Node, positions: int) -> int:
        dims = [
            n for n in (node.rows_shape[1:] if node.rows_shape[0] == 2 or node.kind == "constant" else (1,)) if n > 1
        ]
        if len(dims) >= 2:
            return dims[-1]
        for run in node.runs:
            for piece in run.pieces():
                source = self.placed.get(piece.node)
                if source is not None and piece.node.kind != "constant" and source.positions == positions:
                    return source.width
        if self.has_rows and positions % self.row_length == 0:
            return self.row_length
        return max(positions, 1)

    # ---- deadlines

    def _constrain(self, piece: Piece, rows: np.ndarray, phases: np.ndarray, soft: bool = False) -> None:
        node = piece.node
        if node.kind == "constant":
            return
        positions = source_positions(self.placed, piece, rows)
        valid = positions >= 0
        if not valid.any():
            return
        placed = self.placed[node]
        table = placed.soft_deadline if soft else placed.deadline
        slots = piece.slots[rows][valid]
        for number in piece.source_numbers():
            here = valid.copy()
            if len(node.runs) > 1 and (slots != slots[0]).any():
                here[valid] = node.run_of_slot[slots] == number
            np.minimum.at(table[number], positions[here], phases[here])

    def _place_draw(self, draw: DrawSite) -> None:
        rows = np.arange(len(draw.steps))
        phases = 2 * draw.steps + 1
        width = self.row_length // max(1, self._column_step(draw)) if self.has_rows else len(rows)
        cells = Cells(rows // width, rows % width)
        row_step, column_step, delay = regular_times(cells, draw.steps, draw.steps, (self.row_length, 1))
        row_step, column_step = row_step or self.row_length, column_step or 1
        domain = self._domain(PIXEL, (row_step, column_step, delay), cells, draw.positions, draw.pieces, rows)
        if domain is None:
            raise CompileError("the head's parameters do not lie regularly in the network's output")
        draw.domain = domain
        for piece in draw.pieces:
            self._constrain(piece, rows, phases)

    def _column_step(self, draw: DrawSite) -> int:
        return int(draw.steps[1] - draw.steps[0]) if len(draw.steps) > 1 else 1

    # ---- placing

    def _place(self, placed: Placed, number: int, run: ChannelRun) -> list[ScheduledDomain]:
        deadline, soft_deadline = placed.deadline[number], placed.soft_deadline[number]
        live = np.flatnonzero(deadline < INFINITE)
        rows = placed.row[live]
        ready = run.ready[rows].astype(np.int64)
        if (run.uses[rows] & 2).any():
            raise NotCausalError(
                f"the network mixes the samples of the batch at {placed.node.name}, {placed.node.where}"
            )
        domains = self._fit(placed, run, live, ready, deadline[live])
        if domains is not None and (soft_deadline[live] < deadline[live]).any():
            early = self._fit(placed, run, live, ready, np.minimum(deadline, soft_deadline)[live])
            domains = early if early is not None and len(early) <= len(domains) else domains
        if domains is None:
            raise unplaced(self.graph, placed.node)
        for domain in domains:
            rows = placed.row[domain.positions]
            for keys in (k for k in run.key_rows() if k.node.kind != "constant"):
                source = self.placed[keys.node]
                phases = domain.phases - follows(keys, placed.node)
                positions, first = first_reads(source.position, keys, run.attention.seen, rows, phases)
                for deadlines in source.deadline:
                    np.minimum.at(deadlines, positions, first)
            starts = self._row_starts(domain) if run.terms is not None else None
            for piece, access in zip(run.pieces(), domain.operands, strict=True):
                if access is None:
                    continue
                self._constrain(piece, rows, domain.phases - follows(piece, placed.node))
                if starts is not None and self._ready_at(piece, rows, starts):
                    self._constrain(piece, rows, 2 * starts, soft=True)
        return domains

    def _row_starts(self, domain: ScheduledDomain) -> np.ndarray | None:
        """Returns for each cell the first step of the row of steps in which its row begins."""
        if domain.when != PIXEL or not self.has_rows or domain.row_step % self.row_length:
            return None
        return domain.first_steps() // self.row_length * self.row_length

    def _ready_at(self, piece: Piece, rows: np.ndarray, steps: np.ndarray) -> bool:
        positions = source_positions(self.placed, piece, rows)
        valid = positions >= 0
        source = self.placed[piece.node]
        return bool(valid.any()) and all(
            (run.ready[source.row[positions[valid]]] <= steps[valid]).all() for run in piece.source_runs()
        )

    def _grids(self, placed: Placed, run: ChannelRun) -> Iterator[tuple[Cells, list[tuple[int, int]]]]:
        p = np.arange(placed.positions)
        if placed.width < placed.positions:
            yield Cells(p // placed.width, p % placed.width), _PERIODS_2D
        else:
            yield Cells(p * 0, p), _PERIODS_1D
        if self.has_rows:
            yield Cells(p * 0, p), _PERIODS_1D[:8]
        order = np.argsort(run.ready[placed.row], kind="stable")
        rank = np.empty_like(p)
        rank[order] = p
        if not np.array_equal(rank, p):
            yield Cells(p * 0, rank), _PERIODS_1D[:8]

    def _fit(self, placed: Placed, run: ChannelRun, live, ready, deadline) -> list[ScheduledDomain] | None:
        pieces = run.pieces()
        if not self.order.regular:
            return self._unrolled(placed, pieces, live, ready, deadline)
        for grid, periods in self._grids(placed, run):
            row, column = grid.chosen(live)
            for every_row, every_column in periods:
                if every_row > max(1, row.max() + 1) or every_column > max(1, column.max() + 1):
                    continue
                domains = []
                likely = self._likely(placed, grid.column, every_row, every_column)
                residues = (row % every_row) * every_column + column % every_column
                for residue in sorted(set(residues.tolist())):
                    chosen = residues == residue
                    cells = Cells(row[chosen] // every_row, column[chosen] // every_column)
                    domain = self._fit_class(
                        placed, pieces, live[chosen], cells, ready[chosen], deadline[chosen], likely
                    )
                    if domain is None:
                        break
                    domains.append(domain)
                else:
                    return domains
        return None

    def _likely(self, placed: Placed, columns: np.ndarray, every_row: int, every_column: int) -> tuple[int, int]:
        """Steps a row and a column of a grid that covers the event evenly, of whose rows and columns every so manyth
        is taken."""
        width = int(columns.max()) + 1
        if width == placed.positions:
            return 0, max(1, round(self.order.length / width)) * every_column
        height, rows = placed.positions // width, self.order.length // self.row_length
        row_step = max(1, round(rows / height)) * every_row * self.row_length
        return row_step, max(1, round(self.row_length / width)) * every_column

    def _fit_class(
        self, placed: Placed, pieces, positions, cells: Cells, ready, deadline, likely
    ) -> ScheduledDomain | None:
        rows = placed.row[positions]
        if len(positions) == 1 and not self.has_rows:
            likely = 0, 1  # one cell advances no further in a longer event
        for when in (PROLOGUE, ROW, PIXEL):
            if when == PROLOGUE:
                once = placed.positions == 1 and not placed.fed  # what is fed may wait for the step that it belongs to
                times = (0, 0, 0) if not ready.any() and (once or (deadline < 0).any()) else None
            elif when == ROW:
                times = self._row_times(cells.row, ready, deadline, likely[0] // self.row_length)
            else:
                times = regular_times(cells, ready, (deadline - 1) // 2, likely)
            if times is not None:
                return self._domain(when, times, cells, positions, pieces, rows)
        return None

    def _row_times(self, row, ready, deadline, likely: int) -> tuple[int, int, int] | None:
        if not self.has_rows:
            return None
        first, last = -(-ready // self.row_length), deadline // 2 // self.row_length
        times = regular_times(Cells(row, np.zeros_like(row)), first, last, (max(1, likely), 0))
        if times is None or (times[0] < 1 and (row != row[0]).any()):
            return None
        return max(1, times[0]), 0, times[2] if times[0] else times[2] - int(row[0])

    def _domain(self, when, times, cells: Cells, positions, pieces, rows) -> ScheduledDomain | None:
        (row_step, column_step, delay), (row, column) = times, cells
        target = affine(cells, positions)
        if target is None:
            return None
        if when == PROLOGUE:
            phases = np.full(len(row), -1, np.int64)
        elif when == ROW:
            phases = 2 * (row_step * row + delay) * self.row_length
        elif (column_step < 1 and (column != column[0]).any()) or (
            (row_step < 1 or row_step % self.row_length) and (row != row[0]).any()
        ):
            return None
        else:
            phases = 2 * (row_step * row + column_step * column + delay) + 1
        domain = ScheduledDomain(when, row_step, column_step, delay, cells, positions, phases, target)
        for piece in pieces:
            access = self._access(piece, rows, cells)
            if access is False:
                return None
            domain.operands.append(access)
        return domain

    def _access(self, piece: Piece, rows, cells: Cells) -> Access | bool | None:
        """Finds where the piece lies for each cell; None: nowhere; False: not regularly."""
        positions = source_positions(self.placed, piece, rows)
        valid = positions >= 0
        if not valid.any():
            return None
        slots = piece.slots[rows][valid]
        if (slots != slots[0]).any():
            return False
        read = cells.chosen(valid)
        fit = affine(read, positions[valid])
        if fit is None:
            return False
        box = read.box()
        if (box.holds(*cells) != valid).any():
            return False
        return Access(fit, int(slots[0]), box)

    def _unrolled(self, placed: Placed, pieces, live, ready, deadline) -> list[ScheduledDomain]:
        """Returns one domain a cell, for orders without a pattern."""
        domains = []
        zero = np.zeros(1, np.int64)
        for i, position in enumerate(live):
            when, delay = (PROLOGUE, 0) if ready[i] == 0 else (PIXEL, int(deadline[i] - 1) // 2)
            rows, times = placed.row[[position]], (self.row_length, 1, delay)
            domains.append(self._domain(when, times, Cells(zero, zero), live[[i]], pieces, rows))
        return domains
