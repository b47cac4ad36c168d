"""Random step programs of a known shape, for machines to agree on."""

from __future__ import annotations

import random

import torch

from fastgen.generate import heads
from fastgen.generate.ir.instructions import CONTEXT, DENSE, INDEX, PROLOGUE, STATE, UNBOUNDED, Buffer, Segment
from fastgen.generate.ir.program import Program
from tests.generate.hand_programs import Assembler, op


def causal(seed: int, steps: int = 40, lookahead: int = 5) -> tuple[Program, heads.Head]:
    """A random network over time.

    It has gates, taps summed ahead, a shared accumulator, normalisation over lanes, a context and a prologue.
    """
    choose = random.Random(seed)
    torch.manual_seed(seed)
    levels = choose.choice([3, 16, 40])
    program = Program(steps, UNBOUNDED if seed % 2 else 10, state_size=0, lookahead=lookahead)
    new, in_rows = Assembler(program), program.row_length < UNBOUNDED
    program.buffers.append(Buffer(CONTEXT, 6, 0, 0))
    here = {"row": 10, "column": 1} if in_rows else {}
    cells = {"row1": steps // 10, "column1": 10} if in_rows else {}

    def buffer(channels: int, positions: int) -> int:
        program.buffers.append(Buffer(STATE, channels, positions, program.state_size))
        program.state_size += channels * positions
        return len(program.buffers) - 1

    def past(source: int, channels: int, distance: int) -> int:
        box = {"row0": min(distance, 1)} if in_rows else {"column0": distance}
        return new.operand(source, channels, **here | {"offset": -distance} | box)

    reach = 11 if in_rows else 4
    x, shift = buffer(1, reach + lookahead), buffer(24, 1)
    new.compute(
        [Segment(new.operand(0, 6, column=0), DENSE, 0, 6)], [op("store", 0, 0, new.operand(shift, 24, column=0))],
        parts=1, lanes=24, weight=new.weight(torch.randn(6, 24)), when=PROLOGUE, column1=1,
    )  # fmt: skip
    width = choose.choice([16, 40, 64])
    hidden = buffer(width, reach + lookahead)
    first = new.operand(x, 1, **here | {"offset": -1, "column0": 1})
    new.compute(
        [Segment(first, INDEX, 0, levels), Segment(new.operand(shift, 24, column=0), DENSE, levels, 24)],
        [op("tanh", 0, 0), op("store", 0, 0, new.operand(hidden, width, **here))],
        parts=1, lanes=width, weight=new.weight(torch.randn(levels + 24, width) / 3), **cells,
    )  # fmt: skip
    skip, level = buffer(33, lookahead), 0
    for layer in range(3):
        lanes, previous, narrow = choose.choice([5, 32, 48, 64]), width, hidden
        gate, level = buffer(lanes, lookahead), level + 1
        inputs = [past(narrow, previous, d) for d in (0, choose.randrange(1, 4), reach - 1)]
        start = {"bias": new.constant(torch.randn(2 * lanes))}
        if not in_rows:  # the furthest tap, for three cells at once
            early = buffer(2 * lanes, lookahead + 2)
            stores = [op("store", 0, part, new.operand(early, lanes, channel=part * lanes)) for part in range(2)]
            new.compute(
                [Segment(inputs.pop(), DENSE, 0, previous)], stores, parts=2, lanes=lanes, level=level, block=3,
                weight=new.weight(torch.randn(previous, 2 * lanes) / (3 * previous) ** 0.5), registers=2, **start,
            )  # fmt: skip
            start, level = {"accumulator": new.operand(early, 2 * lanes)}, level + 1
        segments = [Segment(o, DENSE, i * previous, previous) for i, o in enumerate(inputs)]
        operations = [
            op("tanh", 0, 0),
            op("sigmoid", 1, 1),
            op("mul", 0, 0, 1),
            op("store", 0, 0, new.operand(gate, lanes, **here)),
        ]
        new.compute(
            segments, operations, parts=2, lanes=lanes, level=level,
            weight=new.weight(torch.randn(len(inputs) * previous, 2 * lanes) / (3 * previous) ** 0.5), **start, **cells,
        )  # fmt: skip
        gated, width, level = new.operand(gate, lanes, **here), choose.choice([20, 64]), level + 1
        hidden, total = buffer(width, reach + lookahead), new.operand(skip, 33, **here)
        normalise = [
            op("sum", 1, 0, width), op("mulc", 1, 1, x=1 / width), op("sub", 0, 0, 1), op("mul", 1, 0, 0),
            op("sum", 1, 1, width), op("addc", 1, 1, x=1e-5), op("rsqrt", 1, 1), op("mul", 0, 0, 1),
            op("store", 0, 0, new.operand(hidden, width, **here)),
        ]  # fmt: skip
        for outputs, operations, extra in (
            (width, normalise, {}),
            (33, [op("store", 0, 0, total)], {"accumulator": total} if layer else {}),
        ):
            matrix = new.weight(torch.randn(lanes, outputs) / lanes**0.5)
            new.compute(
                [Segment(gated, DENSE, 0, lanes)],
                operations,
                parts=1,
                lanes=outputs,
                level=level,
                weight=matrix,
                **extra,
                **cells,
            )
    logits = buffer(levels, lookahead)
    new.compute(
        [Segment(new.operand(skip, 33, **here), DENSE, 0, 33)],
        [op("store", 0, 0, new.operand(logits, levels, **here))],
        parts=1, lanes=levels, level=level + 1, weight=new.weight(torch.randn(33, levels)), **cells,
    )  # fmt: skip
    read, write = new.operand(logits, levels, **here), new.operand(x, 1, **here)
    new.draw(read, write, **here, **cells)
    return new.finish(), heads.Categorical(levels)
