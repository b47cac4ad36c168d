"""The keys that queries see, as runs that follow the cells where they can, else one set a query."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from fastgen.generate.ir.instructions import AccessMap, KeyRun, KeySet
from fastgen.generate.lower.program_tables import ProgramTables
from fastgen.generate.schedule.affine_fit import affine
from fastgen.generate.schedule.iteration_domain import Cells

Run = tuple[int, int, int]
"""First key, end, step."""


class KeySets:
    """The key sets of a program, each kind of mask once."""

    def __init__(self, tables: ProgramTables) -> None:
        self.program = tables.program
        self._listed: dict[bytes, int] = {}
        self._affine: dict[tuple, int] = {}

    def of(self, seen: np.ndarray, cells: Cells, queries: np.ndarray, target: AccessMap) -> AccessMap:
        """Returns the map from a cell to the number of its key set.

        Args:
            seen: bool ``[T, S]``.
            cells, queries: the cells of a domain, and the query of each.
            target: the map from a cell to its query.
        """
        runs = [_runs(row) for row in seen[queries]]
        found = _affine_runs(runs, cells)
        if found is not None:
            return AccessMap(0, 0, self._one_set(found))
        positions = target.position(*cells)
        first = int(positions.min()) if np.array_equal(positions, queries) else 0  # of the queries that are listed
        seen = seen[first : int(positions.max()) + 1] if first else seen
        key = seen.tobytes()
        if key not in self._listed:
            self._listed[key] = len(self.program.key_sets)
            for row in seen:
                self._add([_constant_run(run) for run in _runs(row)])
        return AccessMap(target.row_stride, target.column_stride, target.offset - first + self._listed[key])

    def _one_set(self, runs: list[KeyRun]) -> int:
        key = tuple(map(repr, runs))
        if key not in self._affine:
            self._affine[key] = len(self.program.key_sets)
            self._add(runs)
        return self._affine[key]

    def _add(self, runs: list[KeyRun]) -> None:
        first = len(self.program.key_runs)
        self.program.key_runs += runs
        self.program.key_sets.append(KeySet(first, first + len(runs)))


def _constant_run(run: Run) -> KeyRun:
    first, stop, step = run
    return KeyRun(AccessMap(0, 0, first), first, AccessMap(0, 0, stop), stop, step)


def _runs(row: np.ndarray) -> list[Run]:
    """Returns the runs of True in a row; single ones that lie evenly apart are one run."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]]).astype(np.int8)))
    runs = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    apart = {b[0] - a[0] for a, b in pairwise(runs)}
    if len(runs) > 1 and len(apart) == 1 and all(stop - first == 1 for first, stop in runs):
        return [(runs[0][0], runs[-1][1], apart.pop())]
    return [(first, stop, 1) for first, stop in runs]


def _affine_runs(runs: list[list[Run]], cells: Cells) -> list[KeyRun] | None:
    """Returns runs of which each cell's are made; None where there are none such."""
    count = max(map(len, runs))
    if any(len(of_cell) not in (0, count) or any(step > 1 for *_, step in of_cell) for of_cell in runs):
        return None
    some = np.array([len(of_cell) == count for of_cell in runs])
    found = []
    for number in range(count):
        ends = np.array([of_cell[number][:2] for of_cell in runs if of_cell])
        start, end = (_clipped(cells.chosen(some), ends[:, side], side == 0) for side in (0, 1))
        if start is None or end is None:
            return None
        run = KeyRun(start[0], start[1], end[0], end[1], 1)
        first, stop = run.bounds(*cells)
        if (first[~some] < stop[~some]).any():  # of cells that see nothing
            return None
        found.append(run)
    return found


def _clipped(cells: Cells, values: np.ndarray, below: bool) -> tuple[AccessMap, int] | None:
    """Returns an affine map and the bound below (above) which its values are cut off, that give ``values``."""
    bound = int(values.min() if below else values.max())
    free = values != bound
    candidates = [affine(cells, values)]
    if free.any():
        candidates.append(affine(cells.chosen(free), values[free]))
    for found in candidates:
        if found is not None:
            given = found.position(*cells)
            if ((np.maximum(given, bound) if below else np.minimum(given, bound)) == values).all():
                return found, bound
    return None
