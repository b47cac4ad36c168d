"""Lower bound on the time of a step program: weights read whenever an instruction runs, every multiply-add once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastgen.generate.ir.program import DENSE, PIXEL, ROW, UNBOUNDED, Program
from fastgen.generate.state import AHEAD

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
_PROBE_REPEATS = 30


@dataclass
class Work:
    """Work of the instructions of one phase in one event (for a stream, in one step), for a batch of 1."""

    footprint: float = 0.0
    """Weights of the phase, in elements."""
    reads: float = 0.0
    """Weights read, counting every execution of an instruction."""
    multiply_adds: float = 0.0


def work(program: Program, batch: int) -> dict[int, Work]:
    """Returns ``{ROW: Work, PIXEL: Work}``; for a program without an end, per step.

    An index segment reads, and adds, one row of its table. Codes that a few samples run for several cells together
    read their weights once for these.
    """
    endless = program.steps >= UNBOUNDED >> 8
    phases = {ROW: Work(), PIXEL: Work()}
    for code in program.codes:
        if code.kind not in phases or code.weight < 0:
            continue
        columns = program.weight_table[code.weight].columns
        segments = program.segments[code.segment0 : code.segment1]
        elements = sum(s.length if s.kind == DENSE else 1 for s in segments) * columns
        cells = 1 / code.column_stride if endless else (code.q1 - code.q0) * (code.w1 - code.w0)
        phase = phases[code.kind]
        phase.footprint += elements
        together = code.together if batch <= AHEAD else 1
        phase.reads += elements * (code.q1 - code.q0 if code.kind == ROW else cells / together)
        phase.multiply_adds += elements * cells
    return phases


def floor_of(program: Program, weights: str, batch: int, threads: int) -> Callable[[], float]:
    """Returns a function that measures this machine's rates and returns the least seconds of an event (a step).

    Of each phase the longer of two times: its weights, as often as they are read for the whole batch, at the read
    bandwidth of a footprint of their size; and its multiply-adds at the peak of float32 multiply-adds.
    """
    from fastgen import _C

    phases = [phase for phase in work(program, batch).values() if phase.footprint]

    def seconds() -> float:
        peak = _C.fma_peak(threads) * 1e9 if batch > 1 or len(phases) > 1 else float("inf")
        total = 0.0
        for phase in phases:
            footprint = max(int(phase.footprint * BYTES[weights]), 1024 * threads)
            rate = _C.read_bandwidth(footprint, threads, _PROBE_REPEATS) * 1e9
            reading = phase.reads * BYTES[weights] / rate
            total += max(reading, 2 * phase.multiply_adds * batch / peak)
        return total

    return seconds


def share_read(program: Program, batch: int) -> float:
    """Returns the share of a stream's weights that a step reads on average."""
    phases = work(program, batch).values()
    return sum(phase.reads for phase in phases) / sum(phase.footprint for phase in phases)
