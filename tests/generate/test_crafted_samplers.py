"""Sampler files whose tables look right one by one and are wrong in combination are refused before any work."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from torch import nn

import fastgen
from fastgen.generate.files.tensor_file import read_tensor_file, write_tensor_file
from fastgen.generate.ir.domain_cells import pixel_cells, row_cells
from fastgen.generate.ir.instructions import INDEX, AccessMap, Box, Instruction, IterationDomain, Operand, Operation
from fastgen.generate.ir.opcodes import OPCODE
from fastgen.generate.ir.program import Program
from fastgen.generate.ir.program_checks import check_program
from fastgen.generate.machines.cpu import CpuMachine
from fastgen.generate.machines.reference import ReferenceMachine
from fastgen.generate.orders import make_order
from tests.generate.compiled import CASES, MACHINES, sampler
from tests.generate.hand_programs import CASES as HAND_MADE

FAR = (1 << 41) - 1


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(16, 16), nn.Conv1d(16, 16, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.embed(x).transpose(1, 2)))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "sampler"
    head = fastgen.heads.Categorical(16)
    fastgen.Sampler(Net(), (40,), head, order="time", predicts="next", threads=1).save(path)
    return path


# robustness_crafted_sampler_files


def prologue(p):
    first = p.instructions[0]
    first.when, first.domain.row1, first.domain.column1 = 0, 1 << 31, 1 << 31


def row(p):
    p.instructions[0].when, p.instructions[0].domain.column1 = 1, 1 << 31


def far_back(operand):
    operand.map = AccessMap(-(1 << 21), -(1 << 21), 0)
    operand.box.row0 = operand.box.column0 = -FAR


def overflow_read(p):
    far_back(p.operands[p.segments[0].operand])
    p.instructions[0].domain = IterationDomain(0, 1, 2, -FAR, -FAR + 1, -FAR, 0)


def overflow_write(p):
    draw = p.draws[0]
    far_back(p.operands[draw.body.input0])
    draw.domain = IterationDomain(0, 1, 1, -FAR, -FAR + 1, -FAR, 0)
    draw.body.map = AccessMap(0, 1, 1)
    read = p.operands[draw.body.parameter0]
    read.map.column_stride, read.box.row0, read.box.column0 = 0, -FAR, -FAR


def wrap(p):
    draw = p.draws[0].body
    buffer, first = p.operands[draw.parameter0].buffer, len(p.operands)
    p.operands += [Operand(buffer, 0, 0, n, AccessMap(0, 1, 0), Box()) for n in (1 << 31, (1 << 31) + 16)]
    draw.parameter0, draw.parameter1 = first, first + 2


def unused_length(p):
    buffer = p.operands[p.draws[0].body.parameter0].buffer
    p.operands.append(Operand(buffer, 0, 0, 1 << 30, AccessMap(0, 1, 0), Box()))


# others of the kind


def before_the_first(p):
    p.operands[p.draws[0].body.parameter0].map.offset = -1


def box_that_is_far(p):
    p.operands[0].box.column1 = 1 << 62


def ring_outside_the_state(p):
    p.buffers[-1].positions = p.state_size


def large_state(p):
    p.state_size = 1 << 40


def many_steps_of_a_row(p):
    domain = p.instructions[0].domain
    domain.row1, domain.column_stride = 1 << 30, 1 << 19
    p.row_length = 1


def all_rows_of_a_frame(p):
    domain = p.instructions[0].domain
    p.instructions[0].when, domain.row_stride, domain.row1 = 1, 0, 1 << 31


def many_frames_of_a_step(p):
    domain = p.instructions[0].domain
    domain.frame1, domain.frame_stride, domain.column_stride = 1 << 30, 1, 1 << 19
    p.row_length = 1


def many_frames_of_a_row(p):
    domain = p.instructions[0].domain
    p.instructions[0].when, domain.column1 = 1, 1
    domain.row_stride, domain.row1, domain.frame_stride, domain.frame1 = 1, 1 << 30, 1, 1 << 30


def frames_that_stand_still(p):
    p.instructions[0].domain.frame1 = 2


def frames_that_run_backwards(p):
    p.draws[0].domain.frame0 = 2


def a_frame_before_the_first(p):
    draw = p.draws[0]
    draw.domain.frame0, draw.domain.frame1 = 1, 2
    p.operands[draw.body.parameter0].map.frame_stride = -1


def frames_that_are_far(p):
    p.operands[0].map.frame_stride = 1 << 31


def rows_beyond_the_matrix(p):
    segment = next(s for s in p.segments if s.kind == INDEX)
    segment.length += 1


def many_registers(p):
    p.instructions[0].body.registers, p.instructions[0].body.lanes = 1 << 15, 1 << 20


def lanes_out_of_nothing(p):
    first, load = p.instructions[0], len(p.operands)
    p.operands.append(
        dataclasses.replace(p.operands[p.draws[0].body.parameter0], channel=0, channel_stride=0, length=1 << 23)
    )
    operation = len(p.operations)
    p.operations += [Operation(OPCODE["load"], 0, load)]
    body = dataclasses.replace(
        first.body, parts=0, weight=-1, bias=-1, segment0=0, segment1=0, lanes=1 << 23, operation0=operation,
        operation1=operation + 1,
    )  # fmt: skip
    domain = dataclasses.replace(first.domain, row1=0)
    p.instructions.append(Instruction(first.when, first.level, 0, domain, body))


def one_matrix_many_times(p):
    last = p.computes[-1]
    for n in range(3000):
        first, operations = len(p.segments), len(p.operations)
        p.segments += p.segments[last.body.segment0 : last.body.segment1] * (1 + n % 500)
        p.operations += p.operations[last.body.operation0 : last.body.operation1]
        body = dataclasses.replace(
            last.body, segment0=first, segment1=len(p.segments), operation0=operations, operation1=len(p.operations)
        )
        p.instructions.append(dataclasses.replace(last, body=body))


def segments_that_overlap(p):
    p.instructions += [p.computes[-1]] * 10


def a_draw_before_the_first_step(p):
    p.draws[0].when = 0


def a_draw_of_a_level(p):
    p.draws[0].level = 1


def a_draw_in_a_loop(p):
    p.draws[0].loop = 1


def a_loop_in_two_places(p):
    p.computes[0].loop = 1
    p.instructions.append(dataclasses.replace(p.computes[0]))  # behind the draws


def a_loop_before_the_first_step(p):
    p.computes[0].when, p.computes[0].loop = 0, 1


def no_modulus(p):
    at = p.instructions[0].body.operation0
    p.operations[at] = Operation(OPCODE["mulmod"], 0, 0, 0, 0, x=0.0)


def draws_beyond_the_event(p):
    p.draws[0].body.channel0 = 1


def steps_before_the_event(p):
    p.steps = 39


FRAMES = [
    all_rows_of_a_frame, many_frames_of_a_step, many_frames_of_a_row, frames_that_stand_still,
    frames_that_run_backwards, a_frame_before_the_first, frames_that_are_far,
]  # fmt: skip
CRAFTED = [
    prologue, row, overflow_read, overflow_write, wrap, unused_length, before_the_first, box_that_is_far,
    ring_outside_the_state, large_state, many_steps_of_a_row, rows_beyond_the_matrix, many_registers,
    lanes_out_of_nothing, one_matrix_many_times, segments_that_overlap, a_draw_before_the_first_step,
    a_draw_of_a_level, a_draw_in_a_loop, a_loop_in_two_places, a_loop_before_the_first_step, no_modulus,
    draws_beyond_the_event, steps_before_the_event, *FRAMES,
]  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("change", CRAFTED, ids=lambda change: change.__name__)
def test_crafted_tables_are_refused(change, machine, good, tmp_path):
    """robustness_crafted_sampler_files, with a right digest"""
    tensors, description = read_tensor_file(good, "program")
    program = Program.from_tensors(tensors)
    change(program)
    write_tensor_file(tmp_path / "bad", "program", program.to_tensors(), description)
    with pytest.raises(ValueError, match="holds a sampler that cannot be used: ") as told:
        fastgen.Sampler.load(tmp_path / "bad", machine=machine, threads=1)
    assert "\n" not in str(told.value)


@pytest.mark.needs_extension
@pytest.mark.parametrize(
    "change", [prologue, row, overflow_read, overflow_write, wrap, before_the_first, box_that_is_far,
               many_steps_of_a_row, rows_beyond_the_matrix, ring_outside_the_state, a_draw_before_the_first_step,
               a_draw_of_a_level, *FRAMES],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_the_cpu_machine_does_not_rely_on_others_checks(change, good):
    program = Program.from_tensors(read_tensor_file(good, "program")[0])
    change(program)
    with pytest.raises(ValueError, match=r"operands\[|instructions\[|segments\[|buffers\["):
        CpuMachine(program, fastgen.heads.Categorical(16))


@pytest.mark.parametrize("name", CASES)
def test_what_is_compiled_passes(name):
    compiled = sampler(name)
    layout, outside = compiled.request.layout, compiled.compiled.context_network
    contexts = [] if layout is None else [s[2] for s in layout.position_major_shapes(1)]
    contexts += [] if outside is None else [channels for _, channels in outside.sizes]
    check_program(compiled.program, compiled.head, compiled.order, contexts)


@pytest.mark.parametrize("name", HAND_MADE)
def test_what_is_made_by_hand_passes(name):
    made = HAND_MADE[name]()
    order = make_order("raster" if len(made.event_shape) > 2 else "time", made.event_shape)
    check_program(made.program, made.head, order, [c.shape[2] for c in made.contexts])


def test_an_index_does_not_read_the_rows_of_the_next_tap():
    """Two tables in one matrix: a level beyond the first is an error, on both machines."""
    made = HAND_MADE["sequence"]()
    levels = made.head.levels
    assert [s.row for s in made.program.segments[:2]] == [0, levels]
    for machine in (ReferenceMachine, *([CpuMachine] if "cpu" in MACHINES else [])):
        run = fastgen.generate.machines.batch.GenerationBatch(
            torch.zeros(1, made.program.state_size), [], 0, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, 14)
        )
        chosen = machine(made.program, made.head)
        chosen.advance(run, 0, 1)
        run.state[0, 0] = levels  # the token of step 0, in a ring of 2
        with pytest.raises(ValueError, match=rf"an index must be a whole number in 0 \.\. {levels - 1}, got {levels}"):
            chosen.advance(run, 1, 2)


@pytest.mark.parametrize("seed", range(3))
def test_step_by_step_the_cells_are_those_of_the_whole_domain(seed):
    """The reference machine finds a step's cells by arithmetic, not by a walk over all rows."""
    choose = random.Random(seed)
    for _ in range(40):
        row0, column0 = choose.randrange(-2, 3), choose.randrange(-2, 3)
        frame0, stride, frame_stride = choose.randrange(-2, 3), choose.randrange(3), choose.randrange(5)
        domain = IterationDomain(
            row_stride=stride, column_stride=choose.randrange(1, 4), delay=choose.randrange(-3, 9),
            row0=row0, row1=row0 + choose.randrange(5), column0=column0, column1=column0 + choose.randrange(6),
            frame_stride=frame_stride, frame0=frame0, frame1=frame0 + choose.randrange(4),
        )  # fmt: skip
        length = choose.randrange(1, 7)
        rows = [(f, r) for f in range(frame0, domain.frame1) for r in range(row0, domain.row1)]
        for t in range(60):
            wanted = [
                (row, column, frame)
                for frame, row in rows
                for column in range(domain.column0, domain.column1)
                if length * (frame_stride * frame + stride * row) + domain.column_stride * column + domain.delay == t
            ]
            assert list(pixel_cells(domain, t, length)) == wanted
            begun = [(f, r) for f, r in rows if frame_stride * f + stride * r + domain.delay == t]
            assert [(f, r) for f, found in row_cells(domain, t) for r in found] == begun


def test_loading_an_event_of_a_trillion_steps_takes_no_memory(good, tmp_path):
    """Sizes alone allocate nothing; the tables are those of 40 steps, which no longer suffice."""
    tensors, description = read_tensor_file(good, "program")
    write_tensor_file(tmp_path / "long", "program", tensors, description | {"event_shape": [1 << 40]})
    with pytest.raises(ValueError, match=r"steps must be in 1099511627776 \.\. "):
        fastgen.Sampler.load(tmp_path / "long")
