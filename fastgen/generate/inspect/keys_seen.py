"""How many keys attention reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastgen.generate.ir.instructions import CONTEXT, PIXEL, UNBOUNDED, Instruction
from fastgen.generate.ir.program import Program


def keys_seen(program: Program, instruction: Instruction, steps: int, contexts: Sequence[int]) -> int:
    """Returns how many keys the queries of an Attend see in so many steps, all together.

    ``contexts`` are the numbers of positions of the program's contexts.
    """
    operands = [program.operands[number] for number in (instruction.body.key, instruction.body.value)]
    buffers = [program.buffers[operand.buffer] for operand in operands]
    most = min([contexts[buffer.offset] for buffer in buffers if buffer.where == CONTEXT], default=UNBOUNDED)
    domain, last = instruction.domain, instruction.domain.column1
    if instruction.when == PIXEL and program.steps > steps:
        last = min(last, -(-(steps - domain.delay) // domain.column_stride))
    rows, columns = np.meshgrid(np.arange(domain.row0, domain.row1), np.arange(domain.column0, last), indexing="ij")
    sets, seen = instruction.body.keys.position(rows, columns), 0
    for number in np.unique(sets).tolist():
        chosen, here = program.key_sets[number], sets == number
        for run in program.key_runs[chosen.run0 : chosen.run1]:
            first, stop = run.bounds(rows[here], columns[here])
            stop = np.minimum(stop, most)
            seen += int(np.maximum(0, -(-(stop - first) // run.step)).sum())
    return seen
