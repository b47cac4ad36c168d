"""Fusion of runs into instructions: contractions with equal inputs, and the elementwise runs behind them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

import numpy as np

from fastgen.generate.ir.graph import ChannelRun, Graph, Node, Piece, Term
from fastgen.generate.ir.instructions import PIXEL
from fastgen.generate.ir.opcodes import REDUCTIONS
from fastgen.generate.schedule.iteration_domain import Access, ScheduledDomain
from fastgen.generate.schedule.scheduler import DrawSite, Placed

_RECENT = 24
"""How many instructions back a contraction with the same inputs is looked for."""


@dataclass(eq=False)
class Task:
    """One run of a node on one domain."""

    node: Node
    run: ChannelRun
    domain: ScheduledDomain
    group: Group | None = None
    register: int = -1
    stored: bool = False


@dataclass(eq=False)
class Group:
    """Tasks of one instruction: contractions with the same terms, and the elementwise runs fused behind them."""

    order: int
    domain: ScheduledDomain
    lanes: int
    loop: int = 0
    """Number of the loop whose nodes it computes; 0 for none."""
    tasks: list[Task] = field(default_factory=list)
    level: int = 0

    def loop_in(self, when: int) -> int:
        """Returns the loop of its instruction: what runs by rows or in the prologue reads nothing of its own phase."""
        return self.loop if when == PIXEL else 0

    @property
    def attention(self) -> Task | None:
        """The task that attends; it has an instruction of its own."""
        return self.tasks[0] if self.tasks[0].run.attention is not None else None

    @property
    def contractions(self) -> list[Task]:
        return [t for t in self.tasks if t.run.terms is not None]


class Grouping:
    """Every run of every domain as a task, tasks in groups, groups in the order of their instructions."""

    def __init__(self, graph: Graph, placed: dict[Node, Placed], draws: Iterable[DrawSite]) -> None:
        self.tasks: dict[tuple[Node, int], list[Task]] = {}
        self.groups: list[Group] = []
        for node in graph.nodes:
            for number, run in enumerate(node.runs):
                self.tasks[node, number] = [Task(node, run, domain) for domain in placed[node].domains[number]]
        self._by_position = {
            source: {int(task.domain.positions[0]): task for task in tasks}
            for source, tasks in self.tasks.items()
            if len(tasks) > 1 and all(len(task.domain.positions) == 1 for task in tasks)
        }
        for tasks in self.tasks.values():
            for task in tasks:
                self._join(task)
        self._mark_stored(draws)
        self._levels()

    def computing(self, piece: Piece) -> list[Task]:
        """Returns the tasks that compute what a piece reads."""
        return [t for number in piece.source_numbers() for t in self.tasks[piece.node, number]]

    def _read(self, piece: Piece, access: Access, domain: ScheduledDomain) -> list[Task]:
        """Returns those of ``computing``; of a node that is unrolled, the ones whose cells the domain reads."""
        found = []
        for number in piece.source_numbers():
            source = piece.node, number
            unrolled = self._by_position.get(source)
            if unrolled is None:
                found += self.tasks[source]
            else:
                inside = access.box.holds(*domain.cells)
                read = np.unique(access.map.position(*domain.cells.chosen(inside))).tolist()
                found += [unrolled[position] for position in read if position in unrolled]
        return found

    def sources(self, task: Task) -> list[tuple[Piece, Access, list[Task]]]:
        return [
            (piece, access, self._read(piece, access, task.domain))
            for piece, access in zip(task.run.pieces(), task.domain.operands, strict=True)
            if access is not None and piece.node.kind == "computed"
        ]

    def feeding(self, task: Task) -> list[Task]:
        """Returns the tasks that compute what a task reads."""
        read = [s for _, _, tasks in self.sources(task) for s in tasks]
        keys = [keys.node for keys in task.run.key_rows() if keys.node.kind == "computed"]
        return read + [t for node in keys for n in range(len(node.runs)) for t in self.tasks[node, n]]

    def register_source(self, task: Task, piece: Piece, access: Access) -> Task | None:
        """Returns the task of the same instruction whose register is the operand."""
        if piece.node.kind != "computed":
            return None
        return next(
            (s for s in self.computing(piece) if s.group is task.group and _linked(task, piece, access, s)), None
        )

    def _join(self, task: Task) -> None:
        sources = [(p, a, s) for p, a, tasks in self.sources(task) for s in tasks if s.group is not None]
        before = [s.group for _, _, s in sources if _follows(task, s)]
        latest = max(before, key=lambda group: group.order, default=None)
        group = self._twin(task, latest) if task.run.terms is not None else latest
        if group is None or (task.run.terms is None and not _fits(task, group, sources)):
            group = Group(len(self.groups), task.domain, task.run.length, task.node.loop)
            self.groups.append(group)
        task.group = group
        group.tasks.append(task)

    def _twin(self, task: Task, latest: Group | None) -> Group | None:
        """Returns a group of contractions with the same inputs, after all that they depend on."""
        for group in reversed(self.groups[-_RECENT:]):
            if latest is not None and latest.order >= group.order:
                return None
            twins = group.contractions
            if (
                twins
                and group.loop == task.node.loop
                and group.lanes == task.run.length
                and group.domain.key == task.domain.key
                and twins[0].domain.operands == task.domain.operands
                and _same_terms(twins[0].run.terms, task.run.terms)
            ):
                return group
        return None

    def _mark_stored(self, draws: Iterable[DrawSite]) -> None:
        for task in (t for tasks in self.tasks.values() for t in tasks):
            for piece, access, sources in self.sources(task):
                if task.run.opcode is not None and self.register_source(task, piece, access) is not None:
                    continue
                for source in sources:
                    source.stored = True
            if task.run.attention is not None:
                task.stored = True
                for source in self.feeding(task):
                    source.stored = True
        for draw in draws:
            for piece, access in zip(draw.pieces, draw.domain.operands, strict=True):
                for source in self._read(piece, access, draw.domain) if piece.node.kind == "computed" else ():
                    source.stored = True

    def _levels(self) -> None:
        """Gives every group its depth in the dependencies of its phase, and those of a loop levels of their own."""
        before = {group: self._before(group) for group in self.groups}
        depth: dict[Hashable, int] = {}
        for group in self.groups:
            outside = [depth[_block(other)] + 1 for other in before[group] if _block(other) != _block(group)]
            depth[_block(group)] = max([depth.get(_block(group), 0), *outside])
        sharing: dict[tuple[int, int, int], list[Group]] = {}
        for group in self.groups:
            sharing.setdefault((group.domain.when, depth[_block(group)], group.loop), []).append(group)
        free = dict.fromkeys((group.domain.when for group in self.groups), 0)
        for (when, _, loop), groups in sorted(sharing.items()):
            for group in groups:
                inside = [other.level + 1 for other in before[group] if loop and other.loop == loop]
                group.level = max([free[when], *inside])
            free[when] = max(group.level for group in groups) + 1

    def _before(self, group: Group) -> list[Group]:
        """Returns the groups of the same phase whose results the group reads, of a loop those that come before it."""
        read = [(task, s) for task in group.tasks for s in self.feeding(task)]
        return [s.group for task, s in read if s.group.order < group.order and _follows(task, s)]


def _block(group: Group) -> Hashable:
    """Returns what is equal for groups that stand together in the list of instructions: those of a loop and a phase."""
    return (group.loop, group.domain.when) if group.loop else group


def _follows(task: Task, source: Task) -> bool:
    """Whether the source's instruction must stand before the reader's, so that each may run over several steps."""
    return source.domain.when == task.domain.when


def _fits(task: Task, group: Group, sources: list[tuple[Piece, Access, Task]]) -> bool:
    """Whether an elementwise run may stand behind a group: equal lanes and cells, the rest computed before."""
    if group.lanes != task.run.length or group.domain.key != task.domain.key or task.node.loop not in (0, group.loop):
        return False
    if task.run.attention is not None or group.attention is not None:
        return False
    return all(
        _linked(task, piece, access, source)
        if source.group is group
        else source.group.order < group.order or not _follows(task, source)
        for piece, access, source in sources
    )


def _linked(task: Task, piece: Piece, access: Access, source: Task) -> bool:
    """Whether a register of the source's instruction holds the operand, lane by lane."""
    a, b, run = source.domain, task.domain, source.run
    if a.key != b.key or access.box != b.box or access.map != a.target:
        return False
    if run.opcode in REDUCTIONS and piece.stride == 0:
        return run.x == run.length == task.run.length and run.slot <= access.slot < run.slot + run.length
    return piece.stride == 1 and access.slot == run.slot and piece.length == run.length == task.run.length


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
