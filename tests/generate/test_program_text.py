"""What ``print(program)`` says, word by word."""

from __future__ import annotations

import pytest
from torch import nn

import fastgen
from fastgen.generate.ir.instructions import PROLOGUE, STATE, UNBOUNDED, AccessMap, Buffer
from fastgen.generate.ir.opcodes import OPCODES
from fastgen.generate.ir.program import Program
from fastgen.generate.ir.program_text import _affine, _bare
from fastgen.nn import MaskedConv2d
from tests.generate.compiled import CASES, case, sampler
from tests.generate.hand_programs import CASES as HAND_MADE
from tests.generate.hand_programs import Assembler, op

IMAGE = """\
program: 20 steps, rows of 4, 64 numbers of state, lookahead 4, 18 weights, 32 constants
buffers
  b0    state at 0, 8 positions x 1 channels
  b1    state at 16, 4 positions x 3 channels
  b2    state at 32, 4 positions x 2 channels
  b3    state at 48, 4 positions x 3 channels
instructions
  0     row 0      cells [0, 5) x [0, 4), row of steps = row: \
s0 = c0 + b0[4 row + column - 5]{row >= 1, column >= 1, else 0} @ W0[0:1] \
+ b0[4 row + column - 4]{row >= 1, else 0} @ W0[1:2] \
+ b0[4 row + column - 3]{row >= 1, column < 3, else 0} @ W0[2:3] (1 x 3); b3[4 row + column] = s0
  1     pixel 0    cells [0, 5) x [0, 4), step = 4 row + column: \
s0 = b3[4 row + column] + b0[4 row + column - 1]{column >= 1, else 0} @ W1[0:1] (1 x 3); b1[4 row + column] = relu(s0)
  2     pixel 1    cells [0, 5) x [0, 4), step = 4 row + column: \
s0 = c16 + b1[4 row + column] @ W2[0:3] (1 x 2); b2[4 row + column] = s0
  3     pixel 0    cells [0, 5) x [0, 4), step = 4 row + column: \
draw channels 0:1 of position 4 row + column from b2[4 row + column]; b0[4 row + column] = their inputs"""

SEQUENCE = """\
program: 14 steps, one row, 96 numbers of state, lookahead 1, 222 weights, 17 constants
buffers
  b0    state at 0, 2 positions x 1 channels
  b1    state at 2, 3 positions x 6 channels
  b2    state at 20, 1 positions x 6 channels
  b3    state at 26, 14 positions x 5 channels
instructions
  0     pixel 0    cells [0, 1) x [0, 14), step = column: s0, s1 = W0[0:5][b0[column - 1]{column >= 1, else 0}] \
+ W0[5:10][b0[column - 2]{column >= 2, else 0}] (2 x 6); b1[column] = tanh(s0) * sigmoid(s1)
  1     pixel 1    cells [0, 1) x [0, 14), step = column: s0 = c6 + b1[column] @ W1[0:6] \
+ b1[column - 2]{column >= 2, else c0} @ W1[6:12] (1 x 6); b2[column] = relu(s0) + b1[column]
  2     pixel 2    cells [0, 1) x [0, 14), step = column: s0 = c12 + b2[column] @ W2[0:6] (1 x 5); b3[column] = s0
  3     pixel 0    cells [0, 1) x [0, 14), step = column: draw channels 0:1 of position column from b3[column]; \
b0[column] = their inputs"""


def test_a_small_network():
    network = nn.Sequential(MaskedConv2d(1, 3, 3, mask="A"), nn.ReLU(), nn.Conv2d(3, 2, 1))
    made = fastgen.Sampler(network, (1, 5, 4), fastgen.heads.Categorical(2), "raster", machine="reference")
    assert str(made.program) == IMAGE


def test_a_sequence_by_hand():
    assert str(HAND_MADE["sequence"]().program) == SEQUENCE


def test_values_that_are_used_twice_have_a_name():
    program = Program(1, UNBOUNDED, 6, 1, [Buffer(STATE, 6, 1, 0)])
    new = Assembler(program)
    halves = [new.operand(0, 3, column=0, channel=channel) for channel in (0, 3)]
    third = new.operand(0, 3, column=0, channel=5, channel_stride=0)
    new.compute(
        [],
        [
            op("load", 0, halves[0]), op("load", 1, third), op("sum", 2, 0, 3), op("mulc", 2, 2, x=1 / 3),
            op("sub", 0, 0, 2), op("mul", 2, 0, 0), op("where", 2, 2, 0, 1), op("clamp", 2, 2, x=-1, y=2.5),
            op("const", 1, x=7), op("store", 0, 2, halves[1]), op("store", 0, 1, halves[0]),
        ],
        parts=0, lanes=3, when=PROLOGUE, column1=1,
    )  # fmt: skip
    assert str(new.finish()).splitlines()[-1] == (
        "  0     prologue 0 cells [0, 1) x [0, 1): r0 = b0[0][0:3]; r1 = r0 - (sum(r0, 3) * 0.333333); "
        "b0[0][3:6] = clamp(where(r1 * r1, r1, b0[0][5] * 3 lanes), -1, 2.5); b0[0][0:3] = 7"
    )


@pytest.mark.parametrize("name", CASES)
def test_every_program_has_a_line_for_each_buffer_and_instruction(name):
    program = sampler(name).program
    lines = str(program).splitlines()
    assert len(lines) == 3 + len(program.buffers) + len(program.instructions)
    assert "?" not in str(program), "no register is read before it is written"
    assert str(program) == str(Program.from_tensors(program.to_tensors()))


def test_every_operation_can_be_printed():
    program = Program(1, UNBOUNDED, 4, 1, [Buffer(STATE, 4, 1, 0)])
    new = Assembler(program)
    held = new.operand(0, 4, column=0)
    for name in OPCODES.keys() - {"load", "store"}:
        loads = [op("load", n, held) for n in range(3)]
        result = op(name, 0, 0, 4 if name in ("sum", "amax", "amin") else 1, 2, 2.0, 3.0)
        new.compute([], [*loads, result, op("store", 0, 0, held)], parts=0, lanes=4, when=PROLOGUE, column1=1)
    assert len(set(str(new.finish()).splitlines())) == 3 + 1 + len(OPCODES) - 2


@pytest.mark.parametrize(
    ("access", "said"),
    [((0, 0, 0), "0"), ((0, 0, -3), "-3"), ((0, 1, 0), "column"), ((-2, -1, 4), "-2 row - column + 4")],
)
def test_affine_functions(access, said):
    assert _affine(AccessMap(*access)) == said


@pytest.mark.parametrize(("value", "said"), [("(a + b)", "a + b"), ("(a) * (b)", "(a) * (b)"), ("a", "a")])
def test_outer_parentheses_go(value, said):
    assert _bare(value) == said


def test_a_program_without_an_end_says_so():
    made = case("wavenet").sampler(event_shape=(100_000,))
    assert str(made.program).startswith("program: no end, one row, ")
