"""The C++ machine's inner loops: sums of every shape, lane operations over the whole range of float32."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgen.generate import heads
from fastgen.generate.ir.instructions import (
    CONSTANT,
    CONTEXT,
    DENSE,
    INDEX,
    PROLOGUE,
    STATE,
    UNBOUNDED,
    Buffer,
    Segment,
)
from fastgen.generate.ir.opcodes import LANES, OPCODES
from fastgen.generate.ir.program import Program
from fastgen.generate.machines.batch import GenerationBatch
from fastgen.generate.machines.reference import ReferenceMachine
from tests.generate.hand_programs import Assembler, op

_C = pytest.importorskip("fastgen._C", reason="no compiled extension")
from fastgen.generate.machines.cpu import CpuMachine  # noqa: E402

UNIT = 2.0**-24
FORMATS = ["float32", "bfloat16", "int8"]
CELLS = (3, 7)


def prologue(machine, state: Tensor, contexts: list[Tensor], threads: int = 1) -> Tensor:
    batch = len(state)
    run = GenerationBatch(
        state=state.clone(),
        contexts=contexts,
        seed=0,
        samples=torch.arange(batch),
        levels=torch.zeros(batch, 1, 1),
        threads=threads,
    )
    machine.prologue(run)
    return run.state


def random_sum(choose: random.Random, inputs: int, parts: int, lanes: int) -> tuple[Program, int]:
    """A Compute: sums of about `inputs` inputs from everywhere, stored; and the number of its outputs' first float."""
    cells, outputs, table = CELLS[0] * CELLS[1], parts * lanes, 5
    sizes = [11 * 24, 4, cells * outputs]
    program = Program(1, UNBOUNDED, state_size=sum(sizes), lookahead=1)
    ring, index, stored, given = range(4)
    program.buffers = [
        Buffer(STATE, 24, 11, 0),
        Buffer(STATE, 1, 4, sizes[0]),
        Buffer(STATE, outputs, cells, sizes[0] + sizes[1]),
        Buffer(CONTEXT, 6, 0, 0),
        Buffer(CONSTANT, 3, 4, 0),
    ]
    new = Assembler(program)
    new.constant(torch.randn(12))
    segments, row = [], 0
    while row < inputs:
        length = min(choose.choice([1, 2, 3, 8, 20, 24]), inputs - row)
        buffer = choose.choice([ring, ring, ring, given, 4])
        channels = program.buffers[buffer].channels
        length = min(length, channels)
        stride = choose.choice([s for s in (0, 1, 1, 2, 3) if (length - 1) * s < channels])
        border = choose.choice([-1, new.constant(torch.randn(length))])
        box = {"row0": 1, "column1": 6, "border": border} if choose.random() < 0.5 else {}
        scale = (
            {"row": 1, "column": 0}
            if buffer == given
            else {"row": choose.choice([0, 7]), "column": choose.choice([0, 1, 2])}
        )
        channel = choose.randrange(channels - (length - 1) * stride)
        operand = new.operand(buffer, length, **scale, channel=channel, channel_stride=stride, **box)
        segments.append(Segment(operand, DENSE, row, length))
        row += length
    if choose.random() < 0.5:
        segments.insert(choose.randrange(len(segments) + 1), Segment(new.operand(index, 1, row=1), INDEX, row, table))
        row += table
    start = {"bias": new.constant(torch.randn(outputs))} if choose.random() < 0.5 else {}
    where = {"row": CELLS[1], "column": 1}
    if choose.random() < 0.5:
        start["accumulator"] = new.operand(stored, outputs, **where)
    stores = [op("store", 0, part, new.operand(stored, lanes, channel=part * lanes, **where)) for part in range(parts)]
    new.compute(
        segments, stores, parts=parts, lanes=lanes, weight=new.weight(torch.randn(row, outputs)), when=PROLOGUE,
        row1=CELLS[0], column1=CELLS[1], registers=parts, **start,
    )  # fmt: skip
    return new.finish(), sizes[0] + sizes[1]


def absolute(program: Program) -> Program:
    """The program whose sums bound those of `program`: with the absolute values of weights and constants."""
    bound = Program.from_tensors(program.to_tensors())
    bound.weights, bound.constants = program.weights.abs(), program.constants.abs()
    return bound


SUMS = [
    (inputs, parts, lanes)
    for inputs, parts, lanes in [
        (1, 1, 1), (2, 1, 5), (3, 2, 16), (7, 1, 17), (16, 2, 40), (31, 3, 20), (64, 1, 64), (65, 2, 64),
        (128, 4, 33), (200, 1, 100), (480, 1, 40), (24, 5, 3), (257, 3, 50),
    ]
]  # fmt: skip


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("shape", SUMS, ids=str)
def test_sums_are_within_the_bound_of_any_order(isa, shape, weights):
    """|sum - exact| <= gamma (|start| + sum |x| |w|), gamma = n u / (1 - n u) for n roundings; for any split."""
    choose = random.Random(str(shape))
    torch.manual_seed(sum(shape))
    program, first = random_sum(choose, *shape)
    head, batch = heads.Bernoulli(), 9
    state = torch.randn(batch, program.state_size)
    state[:, 11 * 24 : 11 * 24 + 4] = torch.randint(0, 5, (batch, 4)).float()
    contexts = [torch.randn(batch, CELLS[0], 6)]
    reference = prologue(ReferenceMachine(program, head, weights), state, contexts)
    bound = prologue(ReferenceMachine(absolute(program), head, weights), state.abs(), [c.abs() for c in contexts])
    machine = CpuMachine(program, head, weights)
    got = prologue(machine, state, contexts)
    roundings = (shape[0] + 10) * UNIT
    allowed = (roundings / (1 - roundings) + UNIT) * bound
    assert torch.equal(got[:, :first], state[:, :first])
    assert ((got - reference).abs() <= allowed)[:, first:].all()
    for threads in (1, 2, 3):
        for samples in (slice(0, 1), slice(2, 9)):
            part = prologue(machine, state[samples], [c[samples] for c in contexts], threads)
            assert torch.equal(part, got[samples])


@pytest.mark.parametrize("weights", FORMATS)
def test_fma_instruction_sets_agree(weights, monkeypatch):
    """The order of a sum does not depend on the width of a vector."""
    wide = [isa for isa in _C.isas() if isa != "baseline"]
    program, _ = random_sum(random.Random(4), 77, 3, 50)
    state = torch.randn(9, program.state_size)
    state[:, 11 * 24 : 11 * 24 + 4] = 2
    contexts = [torch.randn(9, CELLS[0], 6)]
    results = []
    for isa in wide:
        monkeypatch.setenv("FASTGEN_ISA", isa)
        results.append(prologue(CpuMachine(program, heads.Bernoulli(), weights), state, contexts))
    assert all(torch.equal(result, results[0]) for result in results)


def lanes_program(name: str, lanes: int, group: int = 1, x: float = 0.75, y: float = 1.25) -> Program:
    """State [4, lanes]: position 3 = operation(positions 0, 1, 2)."""
    program = Program(1, UNBOUNDED, state_size=4 * lanes, lookahead=1)
    program.buffers = [Buffer(STATE, lanes, 4, 0)]
    new = Assembler(program)
    loads = [op("load", r, new.operand(0, lanes, column=0, offset=r)) for r in range(3)]
    b = group if name in ("sum", "amax", "amin") else 1
    store = op("store", 0, 3, new.operand(0, lanes, column=0, offset=3))
    new.compute([], [*loads, op(name, 3, 0, b, 2, x, y), store], parts=0, lanes=lanes, when=PROLOGUE, column1=1)
    return new.finish()


def apply(name: str, values: Tensor, group: int = 1, x: float = 0.75) -> Tensor:
    """The operation on lanes ``values [batch, 3, lanes]``."""
    batch, _, lanes = values.shape
    state = torch.cat([values, torch.full((batch, 1, lanes), torch.nan)], 1).flatten(1)
    program = lanes_program(name, lanes, group, x)
    return prologue(CpuMachine(program, heads.Bernoulli()), state, [])[:, 3 * lanes :]


SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1e-45,
    -1e-45,
    1e-38,
    1.2e-38,
    3.4e38,
    -3.4e38,
    88.72,
    88.73,
    -87.4,
    -103.9,
    -104.5,
    1e-7,
]
SPECIAL += [-0.99999994, 16777216.0, 8388607.5, 2.5, -2.5, 1e-20, float("inf"), float("-inf"), float("nan")]


def numbers(count: int = 4001) -> Tensor:
    """Every magnitude, and the usual ones densely."""
    scales = torch.randn(count) * 2.0 ** torch.randint(-40, 40, (count,))
    return torch.cat([torch.tensor(SPECIAL), scales, torch.randn(count) * 4, torch.linspace(-110, 95, count)])


def ulps(got: Tensor, exact: Tensor) -> Tensor:
    """Distance in units in the last place of float32; infinities and NaN must be the same."""
    rounded = exact.float()
    spacing = torch.from_numpy(np.spacing(rounded.abs().clamp(max=3e38).numpy())).double()
    error = (got.double() - exact).abs() / spacing
    same = (got == rounded) | (got.isnan() & rounded.isnan())
    return torch.where(same, 0.0, error.nan_to_num(torch.inf))


SAME_NAME = (
    "neg",
    "abs",
    "exp",
    "log",
    "log1p",
    "expm1",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "tanh",
    "sigmoid",
    "erf",
    "sin",
)
SAME_NAME += ("cos", "floor", "ceil", "round", "relu", "sign")
UNARY = {
    **{name: getattr(torch, name) for name in SAME_NAME},
    "elu": lambda a: torch.where(a > 0, a, 0.75 * torch.expm1(a)),
    "leaky_relu": lambda a: torch.where(a > 0, a, 0.75 * a),
    "trunc": torch.trunc, "addc": lambda a: a + 0.75, "mulc": lambda a: a * 0.75,
    "clamp": lambda a: a.clamp(0.75, 1.25),
    "softplus": lambda a: torch.where(a * 0.75 > 1.25, a, torch.log1p(torch.exp((a * 0.75).float().double())) / 0.75),
}  # fmt: skip
ROUNDED_ONCE = {
    "neg",
    "abs",
    "sqrt",
    "reciprocal",
    "floor",
    "ceil",
    "round",
    "relu",
    "addc",
    "mulc",
    "clamp",
    "sign",
    "leaky_relu",
    "trunc",
}


@pytest.mark.parametrize("name", sorted(UNARY))
def test_unary_operations(isa, name):
    """At most 3 units in the last place; exactly rounded where one rounding makes the result."""
    values = numbers()
    got = apply(name, torch.stack([values] * 3)[None])[0]
    with np.errstate(all="ignore"):
        exact = UNARY[name](values.double())
    error = ulps(got, exact)
    worst = error.argmax()
    assert error.max() <= (0.5 if name in ROUNDED_ONCE else 3), (name, values[worst], got[worst], exact[worst])


def test_gelu(isa):
    """1 + erf cancels for negative arguments, so the error is measured against a / 2 (1 + |erf|)."""
    values = numbers().clamp(-1e30, 1e30)
    got = apply("gelu", torch.stack([values] * 3)[None])[0]
    wide = values.double()
    exact, size = wide / 2 * (1 + torch.erf(wide * 2**-0.5)), (wide / 2 * (1 + torch.erf(wide.abs() * 2**-0.5))).abs()
    assert torch.equal(got.isnan(), exact.isnan())
    keep = ~values.isnan()
    assert ((got - exact).abs() <= 3 * 2.0**-23 * size + 2.0**-149)[keep].all()


BINARY = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "max": torch.maximum, "min": torch.minimum,
    "pow": torch.pow, "lt": torch.lt, "le": torch.le, "eq": torch.eq, "ne": torch.ne,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BINARY))
def test_binary_operations(isa, name):
    values = numbers(1500)
    a, b = values, values[torch.randperm(len(values))]
    b[: len(SPECIAL)] = values[: len(SPECIAL)].flip(0)
    b[-300:] = a[-300:]
    got = apply(name, torch.stack([a, b, b])[None])[0]
    exact = BINARY[name](a.double(), b.double()).double()
    assert ulps(got, exact).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("name", ["fmod", "remainder", "floor_divide"])
def test_remainders_are_pytorchs(isa, name):
    """Bit for bit: near multiples, negative and zero divisors, infinities, quotients of every size."""
    special = torch.tensor([*SPECIAL, 0.1, -0.1, 0.3, 0.7, 3.0, -7.0]).float()
    a, b = (t.flatten() for t in torch.meshgrid(special, special, indexing="ij"))
    random, multiples = numbers(1500), torch.randint(-50, 50, (1500,))
    divisors = random[torch.randperm(len(random))]
    a, b = (
        torch.cat([a, random, multiples * 0.1, multiples * 0.7]),
        torch.cat([b, divisors, multiples * 0 + 0.1, multiples * 0 - 0.7]),
    )
    got = apply(name, torch.stack([a, b, b])[None])[0]
    wanted = getattr(torch, name)(a, b)
    for i in (a / b).isinf().nonzero().flatten().tolist():  # PyTorch's vectors give NaN here, its single numbers do not
        wanted[i] = getattr(torch, name)(a[i], b[i])
    wrong = (got.view(torch.int32) != wanted.view(torch.int32)) & ~(got.isnan() & wanted.isnan())
    assert not wrong.any(), (a[wrong][0], b[wrong][0], got[wrong][0], wanted[wrong][0])


def test_integer_operations(isa):
    a, b, c = torch.randint(-(2**24), 2**24 + 1, (3, 2000))
    a[:3], b[:3] = torch.tensor([0, -(2**24), 2**24]), torch.tensor([-1, 2**24, 2**24])
    values = torch.stack([a, b, c]).float()[None]
    for name, exact in (("bitand", a & b), ("bitor", a | b), ("bitxor", a ^ b)):
        assert torch.equal(apply(name, values)[0].long(), exact)
    for modulus in (1, 2, 3, 1009, 65536, 9999991, 2**24):
        assert torch.equal(apply("mulmod", values, x=float(modulus))[0].long(), (a * b + c) % modulus)


def test_where_and_const(isa):
    a, b, c = (numbers(50)[torch.randperm(176)] for _ in range(3))
    values = torch.stack([a, b, c])[None]
    assert torch.equal(apply("where", values)[0].nan_to_num(7), torch.where(a != 0, b, c).nan_to_num(7))
    assert (apply("const", values) == 0.75).all()


@pytest.mark.parametrize("group", [1, 2, 5, 16, 17, 48, 100, 1000])
def test_reductions(isa, group):
    values = torch.randn(4, 3, group * 3)
    grouped = values[:, 0].unflatten(1, (3, group))
    for name, exact in (("amax", grouped.amax(-1)), ("amin", grouped.amin(-1)), ("sum", grouped.double().sum(-1))):
        got = apply(name, values, group).unflatten(1, (3, group))
        assert torch.equal(got, got[..., :1].expand_as(got))
        allowed = group * UNIT * grouped.abs().sum(-1) if name == "sum" else torch.zeros(())
        assert ((got[..., 0] - exact).abs() <= allowed).all()


@pytest.mark.parametrize("name", sorted(name for name, opcode in OPCODES.items() if opcode.form == LANES))
def test_a_lane_does_not_know_its_place(isa, name):
    values = torch.stack([numbers(40)[torch.randperm(146)] for _ in range(3)])[None]
    whole = apply(name, values)[0]
    for lanes in (1, 7, 16, 31):
        first = [apply(name, values[..., i : i + lanes])[0] for i in range(0, values.shape[-1] - lanes, lanes)]
        pieces = torch.cat(first)
        assert torch.equal(pieces.view(torch.int32), whole[: len(pieces)].view(torch.int32))
