"""The scheduler: from ready times and deadlines to iteration domains and access maps.

Time is counted in phases: the prologue is -1, the start of the row of step t is 2 t, step t itself 2 t + 1. A cell is
computed in a phase no earlier than it is ready and no later than its first consumer; within a phase, in the order of
the graph. Nodes are placed from the outputs back, each run of channels as late as its deadlines allow, on a domain
whose cells keep one affine relation to time: whole frames or rows where that is legal, one offset from the step
otherwise. What a node of a loop reads of a later one, or of itself, must be computed in an earlier phase.
"""

from __future__ import annotations

import numpy as np

from fastgen.generate.errors import CompileError, NotCausalError
from fastgen.generate.ir.graph import ChannelRun, Graph, Node, Piece
from fastgen.generate.ir.instructions import PIXEL, PROLOGUE, ROW
from fastgen.generate.ir.loops import loops_of
from fastgen.generate.ir.records import halves
from fastgen.generate.orders import Order
from fastgen.generate.schedule.affine_fit import affine, regular_times
from fastgen.generate.schedule.boxes import boxes_of
from fastgen.generate.schedule.check_schedule import check_schedule
from fastgen.generate.schedule.grids import Period, grids, likely_advance, sizes_of
from fastgen.generate.schedule.iteration_domain import INFINITE, Access, Cells, Schedule, ScheduledDomain
from fastgen.generate.schedule.key_reads import first_reads
from fastgen.generate.schedule.placed import DrawSite, Placed, follows, source_positions
from fastgen.generate.schedule.unplaced import unplaced

_FEW = 4
"""Domains of a run beyond which its cells are rather cut into boxes, if they can be; in a loop one."""


class Scheduler:
    def __init__(self, graph: Graph, order: Order, draws: list[DrawSite]) -> None:
        self.graph, self.order, self.draws = graph, order, draws
        self.row_length = order.row_length
        self.has_rows = order.regular and order.length > order.row_length
        self.placed: dict[Node, Placed] = {}
        self.stuck: Node | None = None
        """The node for which ``run`` found no schedule."""

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
            node, position, row, *sizes_of(node, len(row), self.placed, self.order), far, [f.copy() for f in far],
            [[] for _ in range(runs)], node.kind == "input" or any(source.fed for source in before),
            node.loop > 0 or any(source.looped for source in before),
        )  # fmt: skip

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
        # an unrolled cell is one row, which reads one run, where other rows of the piece may read others
        varies = bool((slots != slots[0]).any()) if self.order.regular else piece.varies
        for number in piece.source_numbers():
            here = valid.copy()
            if varies:
                here[valid] = node.run_of_slot[slots] == number
            np.minimum.at(table[number], positions[here], phases[here])

    def _place_draw(self, draw: DrawSite) -> None:
        rows = np.arange(len(draw.steps))
        phases = 2 * draw.steps + 1
        width = self.order.grid[-1] if self.has_rows else len(rows)
        height = self.order.grid[1] if self.order.has_frames else len(rows) // width
        cells = Cells.on_grid(rows, height, width)
        likely = (self.row_length, 1, height * self.row_length)
        times = regular_times(cells, draw.steps, draw.steps, likely)
        times = times._replace(row_step=times.row_step or self.row_length, column_step=times.column_step or 1)
        domain = self._domain(PIXEL, times, cells, draw.positions, draw.pieces, rows)
        if domain is None:
            raise CompileError("the head's parameters do not lie regularly in the network's output")
        draw.domain = domain
        for piece in draw.pieces:
            self._constrain(piece, rows, phases)

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
            self.stuck = placed.node
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
        uneven = domain.schedule.row_step % self.row_length or domain.schedule.frame_step % self.row_length
        if domain.when != PIXEL or not self.has_rows or uneven:
            return None
        return domain.first_steps() // self.row_length * self.row_length

    def _ready_at(self, piece: Piece, rows: np.ndarray, steps: np.ndarray) -> bool:
        positions = source_positions(self.placed, piece, rows)
        valid = positions >= 0
        source = self.placed[piece.node]
        return bool(valid.any()) and all(
            (run.ready[source.row[positions[valid]]] <= steps[valid]).all() for run in piece.source_runs()
        )

    def _fit(self, placed: Placed, run: ChannelRun, live, ready, deadline) -> list[ScheduledDomain] | None:
        known = ready == 0
        if self._reads_prefix(placed) and known.any() and not known.all():
            parts = [self._fit(placed, run, live[c], ready[c], deadline[c]) for c in (known, ~known)]
            return None if None in parts else [domain for part in parts for domain in part or ()]
        pieces = run.pieces()
        if not self.order.regular:
            return self._unrolled(placed, pieces, live, ready, deadline)
        many = None
        for grid, periods in grids(placed, run, self.has_rows):
            row, column, frame = grid.chosen(live)
            for every in periods:
                if any(m > max(1, axis.max() + 1) for m, axis in zip(every, (row, column, frame), strict=True)):
                    continue
                domains = []
                likely = likely_advance(grid, every, self.order)
                residues = ((frame % every.frame) * every.row + row % every.row) * every.column + column % every.column
                for residue in np.unique(residues):
                    chosen = residues == residue
                    cells = Cells(
                        row[chosen] // every.row, column[chosen] // every.column, frame[chosen] // every.frame
                    )
                    domain = self._fit_class(
                        placed, pieces, live[chosen], cells, ready[chosen], deadline[chosen], likely
                    )
                    if domain is None:
                        break
                    domains.append(domain)
                else:
                    if not self.has_rows or self.order.has_frames or len(domains) <= (1 if placed.node.loop else _FEW):
                        return domains
                    many = many or domains
                    break
        return self._fit_boxes(placed, pieces, live, ready, deadline) or many

    def _reads_prefix(self, placed: Placed) -> bool:
        """Whether cells that depend on nothing but a known prefix are computed at once; loops take them in turn."""
        return self.graph.prefix > 0 and placed.fed and not placed.looped

    def _fit_boxes(self, placed: Placed, pieces, live, ready, deadline) -> list[ScheduledDomain] | None:
        """Returns a domain for every box of cells of an image that read the same pieces, where there are a few."""
        if not self.has_rows or self.order.has_frames:
            return None
        grid = Cells.of_frame(live // placed.width, live % placed.width)
        early = 2 * ready + 1 > deadline  # what must be there at the start of a row
        kinds = [early]
        for piece in pieces:
            valid = source_positions(self.placed, piece, placed.row[live]) >= 0
            kinds.append(np.where(valid, piece.slots[placed.row[live]], -1))
        p = np.arange(placed.positions)
        whole = Cells.of_frame(p // placed.width, p % placed.width)
        likely = likely_advance(whole, Period(1, 1), self.order)
        domains = []
        for box in boxes_of(grid, kinds) or ():
            cells = live[box], grid.chosen(box), ready[box], deadline[box]
            found = self._fit_class(placed, pieces, *cells, likely, (PIXEL,))
            found = found or self._fit_class(placed, pieces, *cells, likely)
            if found is None:
                return None
            domains.append(found)
        return domains or None

    def _fit_class(
        self, placed: Placed, pieces, positions, cells: Cells, ready, deadline, likely, phases=(PROLOGUE, ROW, PIXEL)
    ) -> ScheduledDomain | None:
        rows = placed.row[positions]
        if len(positions) == 1 and not self.has_rows:
            likely = 0, 1, 0  # one cell advances no further in a longer event
        for when in phases:
            if when == PROLOGUE:
                once = placed.positions == 1 and not placed.fed  # what is fed may wait for the step that it belongs to
                now = once or (deadline < 0).any() or self._reads_prefix(placed)
                times = Schedule(0, 0, 0) if not ready.any() and now else None
            elif when == ROW:
                times = self._row_times(cells, ready, deadline, likely)
            else:
                times = regular_times(cells, ready, (deadline - 1) // 2, likely)
            if times is not None:
                return self._domain(when, times, cells, positions, pieces, rows)
        return None

    def _row_times(self, cells: Cells, ready, deadline, likely: tuple[int, int, int]) -> Schedule | None:
        """Returns a schedule at the starts of rows: of whole frames where these may be computed so, else of rows."""
        if not self.has_rows:
            return None
        first, last = -(-ready // self.row_length), deadline // 2 // self.row_length
        (row, _, frame), zero = cells, np.zeros_like(cells.row)
        row_step, frame_step = max(1, likely[0] // self.row_length), likely[2] // self.row_length
        if self.order.has_frames:
            times = regular_times(Cells(zero, zero, frame), first, last, (0, 0, frame_step))
            if times is not None and not _at_once(frame, times.frame_step):
                return times
        times = regular_times(Cells(row, zero, frame), first, last, (row_step, 0, frame_step))
        if times is None or _at_once(row, times.row_step) or _at_once(frame, times.frame_step):
            return None
        return times if times.row_step else times._replace(row_step=1, delay=times.delay - int(row[0]))

    def _domain(self, when: int, times: Schedule, cells: Cells, positions, pieces, rows) -> ScheduledDomain | None:
        target = affine(cells, positions)
        if target is None:
            return None
        if when == PIXEL:
            rows_of_steps = (times.row_step, cells.row), (times.frame_step, cells.frame)
            uneven = any(step % self.row_length and (axis != axis[0]).any() for step, axis in rows_of_steps)
            if uneven or any(
                _at_once(axis, step) for step, axis in (*rows_of_steps, (times.column_step, cells.column))
            ):
                return None
        phases = times.phases(when, cells, self.row_length)
        domain = ScheduledDomain(when, times, cells, positions, phases, target)
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
            rows, times = placed.row[[position]], Schedule(self.row_length, 1, delay)
            domains.append(self._domain(when, times, Cells.of_frame(zero, zero), live[[i]], pieces, rows))
        return domains


def _at_once(axis: np.ndarray, step: int) -> bool:
    """Whether cells at different places along an axis would be computed at the same time."""
    return step < 1 and bool((axis != axis[0]).any())
