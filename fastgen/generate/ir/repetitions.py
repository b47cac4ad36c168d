"""Repetitions in a sequence: the same numbers again and again, as a loop's body leaves them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LEAST = 4
"""Repetitions from which on a loop is told from things that happen to be alike."""


class Repetition(NamedTuple):
    """Element i is equal to element i + period, for ``start <= i < stop - period``."""

    start: int
    stop: int
    period: int


def repetitions_from(tokens: np.ndarray, start: int) -> list[Repetition]:
    """Returns those of ``LEAST`` periods or more that begin at ``start``: longest first, then of shortest period."""
    found = []
    for period in (np.flatnonzero(tokens[start + 1 :] == tokens[start]) + 1).tolist():
        if start + LEAST * period > len(tokens):
            break
        differs = tokens[start : len(tokens) - period] != tokens[start + period :]
        length = int(differs.argmax()) if differs.any() else len(differs)
        if length >= (LEAST - 1) * period:
            found.append(Repetition(start, start + period + length, period))
    return sorted(found, key=lambda repetition: (-repetition.stop, repetition.period))


def repetitions(tokens: np.ndarray) -> list[Repetition]:
    """Returns the repetitions of a sequence, from its start on, that do not overlap."""
    found: list[Repetition] = []
    at = 0
    while at < len(tokens):
        here = repetitions_from(tokens, at)
        found += here[:1]
        at = here[0].stop if here else at + 1
    return found
