"""Lower bound on the time of a step program: weights read whenever an instruction runs, every multiply-add once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastgen.generate.inspect.keys_seen import keys_seen
from fastgen.generate.ir.instructions import DENSE, PIXEL, ROW, UNBOUNDED
from fastgen.generate.ir.program import Program
from fastgen.generate.machines.batch import FEW_SAMPLES

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
    kept: float = 0.0
    """Keys and values that attention reads, in float32 numbers of one sample."""
    positions: float = 0.0
    """Of the state behind them, in float32 numbers of one sample."""


def work(program: Program, batch: int) -> dict[int, Work]:
    """Returns ``{ROW: Work, PIXEL: Work}``; for a program without an end, per step.

    An index segment reads, and adds, one row of its table. Instructions that a few samples run for a block of cells
    read their weights once for these.
    """
    endless = program.steps >= UNBOUNDED >> 8
    phases = {ROW: Work(), PIXEL: Work()}
    for instruction in program.computes:
        domain, body = instruction.domain, instruction.body
        if instruction.when not in phases or body.weight < 0:
            continue
        columns = program.weight_table[body.weight].columns
        segments = program.segments[body.segment0 : body.segment1]
        elements = sum(s.length if s.kind == DENSE else 1 for s in segments) * columns
        cells = 1 / domain.column_stride if endless else domain.rows * domain.columns * domain.frames
        phase = phases[instruction.when]
        phase.footprint += elements
        block = body.block if batch <= FEW_SAMPLES else 1
        phase.reads += elements * (domain.rows * domain.frames if instruction.when == ROW else cells / block)
        phase.multiply_adds += elements * cells
    for instruction in program.attends if not endless else ():
        phase, body = phases[instruction.when], instruction.body
        operands = [program.operands[number] for number in (body.key, body.value)]
        buffers = [program.buffers[operand.buffer] for operand in operands]
        read = sum(o.length * b.stride / b.channels for o, b in zip(operands, buffers, strict=True))
        seen = keys_seen(program, instruction, program.steps, contexts=())
        phase.kept += seen * read
        phase.multiply_adds += seen * sum(o.length for o in operands) * body.heads // body.groups
        phase.positions += sum(buffer.positions * buffer.stride for buffer in buffers)
    return phases


def floor_of(program: Program, weights: str, batch: int, threads: int) -> Callable[[], float]:
    """Returns a function that measures this machine's rates and returns the least seconds of an event (a step).

    Of each phase the longer of two times: its weights, as often as they are read for the whole batch, and the keys and
    values of every sample, at the read bandwidth of footprints of their sizes; and its multiply-adds at the peak.
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
            if phase.kept:
                kept = _C.read_bandwidth(max(int(4 * phase.positions * batch), 1024 * threads), threads, _PROBE_REPEATS)
                reading += 4 * phase.kept * batch / (kept * 1e9)
            total += max(reading, 2 * phase.multiply_adds * batch / peak)
        return total

    return seconds


def share_read(program: Program, batch: int) -> float:
    """Returns the share of a stream's weights that a step reads on average."""
    phases = work(program, batch).values()
    return sum(phase.reads for phase in phases) / sum(phase.footprint for phase in phases)
