"""Sampler files whose tables look right one by one and are wrong in combination are refused before any work."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from torch import nn

import fastgen
from fastgen.generate.files.tensor_file import read_tensor_file, write_tensor_file
from fastgen.generate.ir.program import INDEX, OPCODE, PIXEL, Operand, Operation, Program
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
    code = p.codes[0]
    code.kind, code.q1, code.w1 = 0, 1 << 31, 1 << 31


def row(p):
    p.codes[0].kind, p.codes[0].w1 = 1, 1 << 31


def overflow_read(p):
    operand = p.operands[p.segments[0].operand]
    operand.a = operand.b = -(1 << 21)
    operand.box_q0 = operand.box_w0 = -FAR
    operand.c, code = 0, p.codes[0]
    code.row_stride, code.q0, code.q1, code.w0, code.w1, code.delay = 0, -FAR, -FAR + 1, -FAR, 0, 2


def overflow_write(p):
    draw = p.draws[0]
    operand = p.operands[draw.input0]
    operand.a = operand.b = -(1 << 21)
    operand.box_q0 = operand.box_w0 = -FAR
    operand.c = 0
    draw.row_stride, draw.q0, draw.q1, draw.w0, draw.w1, draw.delay = 0, -FAR, -FAR + 1, -FAR, 0, 1
    draw.a, draw.b, draw.c = 0, 1, 1
    read = p.operands[draw.parameter0]
    read.b, read.box_q0, read.box_w0 = 0, -FAR, -FAR


def wrap(p):
    draw = p.draws[0]
    buffer, first = p.operands[draw.parameter0].buffer, len(p.operands)
    p.operands += [Operand(buffer, 0, 0, 1 << 31, 0, 1, 0), Operand(buffer, 0, 0, (1 << 31) + 16, 0, 1, 0)]
    draw.parameter0, draw.parameter1 = first, first + 2


def unused_length(p):
    p.operands.append(Operand(p.operands[p.draws[0].parameter0].buffer, 0, 0, 1 << 30, 0, 1, 0))


# others of the kind


def before_the_first(p):
    p.operands[p.draws[0].parameter0].c = -1


def box_that_is_far(p):
    p.operands[0].box_w1 = 1 << 62


def ring_outside_the_state(p):
    p.buffers[-1].positions = p.state_size


def large_state(p):
    p.state_size = 1 << 40


def many_steps_of_a_row(p):
    p.codes[0].q1, p.codes[0].column_stride = 1 << 30, 1 << 19
    p.row_length = 1


def rows_beyond_the_matrix(p):
    segment = next(s for s in p.segments if s.kind == INDEX)
    segment.length += 1


def many_registers(p):
    p.codes[0].registers, p.codes[0].lanes = 1 << 15, 1 << 20


def lanes_out_of_nothing(p):
    code, load = p.codes[0], len(p.operands)
    p.operands.append(
        dataclasses.replace(p.operands[p.draws[0].parameter0], channel=0, channel_stride=0, length=1 << 23)
    )
    first = len(p.operations)
    p.operations += [Operation(OPCODE["load"], 0, load)]
    p.codes.append(dataclasses.replace(
        code, parts=0, weight=-1, bias=-1, segment0=0, segment1=0, lanes=1 << 23, operation0=first,
        operation1=first + 1, q1=0,
    ))  # fmt: skip


def one_matrix_many_times(p):
    code = p.codes[-1]
    for _ in range(3000):
        first, operations = len(p.segments), len(p.operations)
        p.segments += p.segments[code.segment0 : code.segment1] * (1 + len(p.codes) % 500)
        p.operations += p.operations[code.operation0 : code.operation1]
        p.codes.append(dataclasses.replace(
            code, segment0=first, segment1=len(p.segments), operation0=operations, operation1=len(p.operations)
        ))  # fmt: skip


def segments_that_overlap(p):
    p.codes += [dataclasses.replace(p.codes[-1]) for _ in range(10)]


def no_modulus(p):
    at = p.codes[0].operation0
    p.operations[at] = Operation(OPCODE["mulmod"], 0, 0, 0, 0, x=0.0)


def draws_beyond_the_event(p):
    p.draws[0].channel0 = 1


def steps_before_the_event(p):
    p.steps = 39


CRAFTED = [
    prologue, row, overflow_read, overflow_write, wrap, unused_length, before_the_first, box_that_is_far,
    ring_outside_the_state, large_state, many_steps_of_a_row, rows_beyond_the_matrix, many_registers,
    lanes_out_of_nothing, one_matrix_many_times, segments_that_overlap, no_modulus, draws_beyond_the_event,
    steps_before_the_event,
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
               many_steps_of_a_row, rows_beyond_the_matrix, ring_outside_the_state],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_the_cpu_machine_does_not_rely_on_others_checks(change, good):
    program = Program.from_tensors(read_tensor_file(good, "program")[0])
    change(program)
    with pytest.raises(ValueError, match=r"operands\[|codes\[|draws\[|segments\[|buffers\["):
        CpuMachine(program, fastgen.heads.Categorical(16))


@pytest.mark.parametrize("name", CASES)
def test_what_is_compiled_passes(name):
    compiled = sampler(name)
    contexts = (
        [] if compiled.request.layout is None else [s[2] for s in compiled.request.layout.position_major_shapes(1)]
    )
    check_program(compiled.program, compiled.head, compiled.order, contexts)


@pytest.mark.parametrize("name", HAND_MADE)
def test_what_is_made_by_hand_passes(name):
    made = HAND_MADE[name]()
    order = make_order("raster" if len(made.event_shape) == 3 else "time", made.event_shape)
    check_program(made.program, made.head, order, [c.shape[2] for c in made.contexts])


def test_an_index_does_not_read_the_rows_of_the_next_tap():
    """Two tables in one matrix: a level beyond the first is an error, on both machines."""
    made = HAND_MADE["sequence"]()
    levels = made.head.levels
    assert [s.row for s in made.program.segments[:2]] == [0, levels]
    for machine in (ReferenceMachine, *([CpuMachine] if "cpu" in MACHINES else [])):
        run = fastgen.generate.machines.batch.Run(
            torch.zeros(1, made.program.state_size), [], 0, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, 14)
        )
        chosen = machine(made.program, made.head)
        chosen.advance(run, 0, 1)
        run.state[0, 0] = levels  # the token of step 0, in a ring of 2
        with pytest.raises(
            ValueError, match=rf"an index is {levels}.*; it must be a whole number in 0 \.\. {levels - 1}"
        ):
            chosen.advance(run, 1, 2)


@pytest.mark.parametrize("seed", range(3))
def test_step_by_step_the_cells_are_those_of_the_whole_lattice(seed):
    """The reference machine finds a step's cells by arithmetic, not by a walk over all rows."""
    from fastgen.generate.machines.reference import _pixel_cells

    choose = random.Random(seed)
    code = sampler("masked_stack").program.codes[0]
    for _ in range(40):
        q0, w0 = choose.randrange(-2, 3), choose.randrange(-2, 3)
        record = dataclasses.replace(
            code, kind=PIXEL, q0=q0, q1=q0 + choose.randrange(5), w0=w0, w1=w0 + choose.randrange(6),
            row_stride=choose.randrange(3), column_stride=choose.randrange(1, 4), delay=choose.randrange(-3, 9),
        )  # fmt: skip
        length = choose.randrange(1, 7)
        for t in range(60):
            every = [(q, w) for q in range(record.q0, record.q1) for w in range(record.w0, record.w1)]
            wanted = [
                (q, w) for q, w in every
                if length * record.row_stride * q + record.column_stride * w + record.delay == t
            ]  # fmt: skip
            assert list(_pixel_cells(record, t, length)) == wanted


def test_loading_an_event_of_a_trillion_steps_takes_no_memory(good, tmp_path):
    """Sizes alone allocate nothing; the tables are those of 40 steps, which no longer suffice."""
    tensors, description = read_tensor_file(good, "program")
    write_tensor_file(tmp_path / "long", "program", tensors, description | {"event_shape": [1 << 40]})
    with pytest.raises(ValueError, match=r"steps must be in 1099511627776 \.\. "):
        fastgen.Sampler.load(tmp_path / "long")
