"""Times several providers in one run, A B C A B C ..., and takes the median of each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

_SETTLE = 0.005  # seconds; idle OpenMP threads of the provider before go to sleep
_SHORT = 0.01  # seconds; a call that takes less is repeated for as long: by itself it would time how cores wake up


def seconds_of(run: Callable[[], object]) -> float:
    """Returns the time of one call, or where calls are short the mean of several."""
    taken = _seconds_of_calls(run, 1)
    return taken if taken >= _SHORT else _seconds_of_calls(run, int(_SHORT / taken))


def _seconds_of_calls(run: Callable[[], object], calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - begin) / calls


@dataclass
class Provider:
    """One way of doing the work. A call of ``run`` makes ``units`` units: samples, or images, or a part of one."""

    name: str
    run: Callable[[], object]
    units: float
    threads: int
    """PyTorch's threads while it runs."""
    note: str = ""
    machine_threads: int | None = None
    """Threads of a provider that has its own."""
    floor: Callable[[], float] | None = None
    """Returns the least seconds of a unit, from rates measured now; called once a round, right after ``run``."""
    within: Callable[[], AbstractContextManager] = nullcontext
    """Context entered before ``run`` and left after it, outside of the timing, as is a first ``run`` within."""
    times: list[float] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """Times a call; PyTorch has ``threads`` threads within."""
        before = torch.get_num_threads()
        if before != self.threads:
            torch.set_num_threads(self.threads)
        with self.within():
            if self.within is not nullcontext:  # where classes were patched, Python looks all their attributes up anew
                self.run()
            time.sleep(_SETTLE)
            self.times.append(seconds_of(self.run) / self.units)
        if before != self.threads:
            torch.set_num_threads(before)
        if self.floor is not None:
            self.floors.append(self.floor())

    @property
    def seconds(self) -> float:
        """The median time of a unit."""
        return statistics.median(self.times)

    @property
    def percent_of_floor(self) -> float | None:
        """The floor as a percentage of the time, in the same round: 100 is the floor itself."""
        if not self.floors:
            return None
        return 100 * statistics.median(f / t for f, t in zip(self.floors, self.times, strict=True))

    def speedup_over(self, other: Provider) -> float:
        """The median over the rounds of how many times faster than ``other`` this is."""
        return statistics.median(b / a for a, b in zip(self.times, other.times, strict=True))


def interleave(benchmark, providers: list[Provider], rounds: int) -> None:
    """Times every provider once a round.

    pytest-benchmark itself times the first provider; the others, and the floors, run between its rounds. One round
    before the first warms everything up and is not counted.
    """
    first, *others = providers

    def between() -> None:
        for provider in others:
            provider.measure()

    for provider in providers:
        provider.measure()
        provider.times.clear()
        provider.floors.clear()
    benchmark.pedantic(first.measure, setup=between, rounds=rounds, iterations=1)
