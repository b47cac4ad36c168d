"""Which runs share a code: contractions with equal inputs, and the elementwise runs behind them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from fastgen.generate.ir.graph import REDUCTIONS, Channels, Graph, Node, Piece, Term
from fastgen.generate.schedule.lattice import Address, Lattice
from fastgen.generate.schedule.scheduler import DrawSite, Placed

_RECENT = 24
"""How many codes back a contraction with the same inputs is looked for."""


@dataclass(eq=False)
class Task:
    """One run of a node on one lattice."""

    node: Node
    run: Channels
    lattice: Lattice
    group: Group | None = None
    register: int = -1
    stored: bool = False


@dataclass(eq=False)
class Group:
    """Tasks of one code: contractions with the same terms, and the elementwise runs fused behind them."""

    order: int
    lattice: Lattice
    lanes: int
    tasks: list[Task] = field(default_factory=list)
    level: int = 0

    @property
    def contractions(self) -> list[Task]:
        return [t for t in self.tasks if t.run.terms is not None]


class Grouping:
    """Every run of every lattice as a task, tasks in groups, groups in the order of their codes."""

    def __init__(self, graph: Graph, placed: dict[Node, Placed], draws: Iterable[DrawSite]) -> None:
        self.tasks: dict[tuple[Node, int], list[Task]] = {}
        self.groups: list[Group] = []
        for node in graph.nodes:
            for number, run in enumerate(node.runs):
                tasks = [Task(node, run, lattice) for lattice in placed[node].lattices[number]]
                self.tasks[node, number] = tasks
                for task in tasks:
                    self._join(task)
        self._mark_stored(draws)
        self._levels()

    def of(self, piece: Piece) -> list[Task]:
        """The tasks that compute what a piece reads."""
        return [t for run in piece.source_runs() for t in self.tasks[piece.node, piece.node.runs.index(run)]]

    def sources(self, task: Task) -> list[tuple[Piece, Address, list[Task]]]:
        return [
            (piece, address, self.of(piece))
            for piece, address in zip(task.run.pieces(), task.lattice.operands, strict=True)
            if address is not None and piece.node.kind == "computed"
        ]

    def register_source(self, task: Task, piece: Piece, address: Address) -> Task | None:
        """The task of the same code whose register is the operand."""
        if piece.node.kind != "computed":
            return None
        return next((s for s in self.of(piece) if s.group is task.group and _linked(task, piece, address, s)), None)

    def _join(self, task: Task) -> None:
        sources = [(p, a, s) for p, a, tasks in self.sources(task) for s in tasks]
        before = [s.group for _, _, s in sources if _follows(task, s)]
        latest = max(before, key=lambda group: group.order, default=None)
        group = self._twin(task, latest) if task.run.terms is not None else latest
        if group is None or (task.run.terms is None and not _fits(task, group, sources)):
            group = Group(len(self.groups), task.lattice, task.run.length)
            self.groups.append(group)
        task.group = group
        group.tasks.append(task)

    def _twin(self, task: Task, latest: Group | None) -> Group | None:
        """A group of contractions with the same inputs, after all that they depend on."""
        for group in reversed(self.groups[-_RECENT:]):
            if latest is not None and latest.order >= group.order:
                return None
            twins = group.contractions
            if (
                twins
                and group.lanes == task.run.length
                and group.lattice.domain == task.lattice.domain
                and twins[0].lattice.operands == task.lattice.operands
                and _same_terms(twins[0].run.terms, task.run.terms)
            ):
                return group
        return None

    def _mark_stored(self, draws: Iterable[DrawSite]) -> None:
        for task in (t for tasks in self.tasks.values() for t in tasks):
            for piece, address, sources in self.sources(task):
                if task.run.terms is None and self.register_source(task, piece, address) is not None:
                    continue
                for source in sources:
                    source.stored = True
        for piece in (p for draw in draws for p in draw.pieces if p.node.kind == "computed"):
            for source in self.of(piece):
                source.stored = True

    def _levels(self) -> None:
        for group in self.groups:
            for task in group.tasks:
                for source in (s for _, _, sources in self.sources(task) for s in sources):
                    if source.group is not group and _follows(task, source):
                        group.level = max(group.level, source.group.level + 1)


def _follows(task: Task, source: Task) -> bool:
    """Whether the source's code must stand before the reader's, so that whole codes may run over several steps."""
    return source.lattice.kind == task.lattice.kind


def _fits(task: Task, group: Group, sources: list[tuple[Piece, Address, Task]]) -> bool:
    """Whether an elementwise run may stand behind a group: equal lanes and cells, the rest computed before."""
    if group.lanes != task.run.length or group.lattice.domain != task.lattice.domain:
        return False
    return all(
        _linked(task, piece, address, source)
        if source.group is group
        else source.group.order < group.order or not _follows(task, source)
        for piece, address, source in sources
    )


def _linked(task: Task, piece: Piece, address: Address, source: Task) -> bool:
    """Whether a register of the source's code holds the operand, lane by lane."""
    a, b, run = source.lattice, task.lattice, source.run
    if (
        a.domain != b.domain
        or address.box != b.box
        or (address.a, address.b, address.c) != (a.target.a, a.target.b, a.target.c)
    ):
        return False
    if run.opcode in REDUCTIONS and piece.stride == 0:
        return run.x == run.length == task.run.length and run.slot <= address.slot < run.slot + run.length
    return piece.stride == 1 and address.slot == run.slot and piece.length == run.length == task.run.length


def _same_terms(a: list[Term], b: list[Term]) -> bool:
    if a is b:
        return True
    return len(a) == len(b) and all(
        s.index == t.index
        and s.piece.node is t.piece.node
        and s.piece.length == t.piece.length
        and s.piece.stride == t.piece.stride
        and len(s.weight_rows) == len(t.weight_rows)
        and np.array_equal(s.piece.rows, t.piece.rows)
        and np.array_equal(s.piece.slots, t.piece.slots)
        and np.array_equal(s.weight_rows, t.weight_rows)
        for s, t in zip(a, b, strict=True)
    )
