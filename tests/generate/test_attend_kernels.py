"""The C++ machine's attention: heads, groups and keys of every shape, on every instruction set, against float64."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from fastgen.generate import heads
from fastgen.generate.ir.instructions import (
    CONTEXT,
    PROLOGUE,
    STATE,
    AccessMap,
    Attend,
    Box,
    Buffer,
    Instruction,
    IterationDomain,
    KeyRun,
    KeySet,
    Operand,
    Operation,
)
from fastgen.generate.ir.opcodes import OPCODE
from fastgen.generate.ir.program import Program
from fastgen.generate.machines.batch import GenerationBatch
from fastgen.generate.machines.reference import ReferenceMachine

_C = pytest.importorskip("fastgen._C", reason="no compiled extension")
from fastgen.generate.machines.cpu import CpuMachine  # noqa: E402

UNIT = 2.0**-24
QUERIES, KEYS, BATCH, SCALE = 9, 40, 3, 0.37
SHAPES = [  # heads, groups, depth, width: whole vectors, rests, more than the kernel holds at once
    (1, 1, 1, 1), (4, 2, 4, 5), (2, 2, 16, 16), (3, 1, 20, 33), (2, 1, 64, 64), (1, 1, 144, 137), (6, 3, 15, 129),
]  # fmt: skip


def program(shape: tuple[int, int, int, int], softmax: bool) -> Program:
    """Attention of contexts, query by query: to a window that grows and slides, and to every third key behind it."""
    count, groups, depth, width = shape
    made = Program(1, 1, QUERIES * count * width, 1)
    sizes = (count * depth, groups * depth, groups * width)
    made.buffers = [Buffer(CONTEXT, channels, 0, number) for number, channels in enumerate(sizes)]
    made.buffers.append(Buffer(STATE, count * width, QUERIES, 0))
    along = AccessMap(0, 1, 0)
    made.operands = [Operand(n, 0, 1, channels, along, Box()) for n, channels in enumerate((*sizes, count * width))]
    made.key_runs = [
        KeyRun(AccessMap(0, 2, -6), 0, AccessMap(0, 2, 3), 18, 1),
        KeyRun(AccessMap(0, 0, 19), 19, AccessMap(0, 3, 16), KEYS, 3),
    ]
    made.key_sets = [KeySet(0, 2)]
    made.operations = [Operation(OPCODE["mulc"], 0, 0, x=SCALE)]
    body = Attend(0, 1, 2, 3, count, groups, AccessMap(0, 0, 0), 0, 1, 1, 1, 1, int(softmax))
    made.instructions = [Instruction(PROLOGUE, 0, 0, IterationDomain(1, 1, 0, 0, 1, 0, QUERIES), body)]
    return made


def seen(query: int) -> list[int]:
    return [*range(max(0, 2 * query - 6), min(18, 2 * query + 3)), *range(19, min(KEYS, 3 * query + 16), 3)]


def contexts(shape: tuple[int, int, int, int]) -> list[Tensor]:
    count, groups, depth, width = shape
    generator = torch.Generator().manual_seed(depth)
    sizes = ((QUERIES, count * depth), (KEYS, groups * depth), (KEYS, groups * width))
    return [torch.randn(BATCH, *size, generator=generator) for size in sizes]


def run(machine, made: Program, given: list[Tensor], threads: int = 1) -> Tensor:
    state = torch.full((len(given[0]), made.state_size + 16), torch.nan)
    samples = torch.arange(len(given[0]))
    batch = GenerationBatch(state, given, 0, samples, torch.zeros(len(given[0]), 1, 1), threads=threads)
    machine.prologue(batch)
    return state[:, : made.state_size].reshape(len(given[0]), QUERIES, -1)


def exact(shape: tuple[int, int, int, int], softmax: bool, given: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the outputs in float64, and what float32 may be off: of products, of exp, of the sums over keys."""
    count, groups, depth, _ = shape
    query, key, value = (c.double().unflatten(-1, (n, -1)) for c, n in zip(given, (count, groups, groups), strict=True))
    key, value = (t.repeat_interleave(count // groups, 2) for t in (key, value))
    results, bounds = [], []
    for at in range(QUERIES):
        keys = seen(at)
        products = query[:, at, :, None] * key[:, keys].transpose(1, 2) * SCALE  # [B, heads, keys, depth]
        off = (depth + 2) * UNIT * products.abs().sum(-1)
        scores, values = products.sum(-1), value[:, keys].transpose(1, 2)
        if softmax:
            weights = scores.softmax(-1)
            relative = 2 * off.amax(-1, keepdim=True) + (len(keys) + 16) * UNIT
            wrong = weights * relative
        else:
            weights, wrong = scores, off + UNIT * scores.abs()
        sums = torch.einsum("bhs,bhsc->bhc", weights.abs(), values.abs())
        bounds.append(torch.einsum("bhs,bhsc->bhc", wrong, values.abs()) + (len(keys) + 1) * UNIT * sums)
        results.append(torch.einsum("bhs,bhsc->bhc", weights, values))
    return torch.stack(results, 1).flatten(2), torch.stack(bounds, 1).flatten(2)


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_are_those_of_float64(shape, softmax, isa):
    made = program(shape, softmax)
    wanted, bound = exact(shape, softmax, contexts(shape))
    for machine in (CpuMachine, ReferenceMachine):
        found = run(machine(made, heads.Bernoulli()), made, contexts(shape))
        assert ((found - wanted).abs() <= bound).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_depend_on_nothing_but_the_numbers(shape, isa):
    """Not on the batch, the threads, nor on which heads a thread has."""
    made = program(shape, True)
    machine, given = CpuMachine(made, heads.Bernoulli()), contexts(shape)
    whole = run(machine, made, given)
    assert torch.equal(run(machine, made, given, threads=2), whole)
    for row in range(BATCH):
        alone = [context[row : row + 1] for context in given]
        for threads in (1, 3):
            assert torch.equal(run(machine, made, alone, threads), whole[row : row + 1])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_wide_instruction_sets_agree_bit_for_bit_in_the_sums(shape, monkeypatch):
    """Without a softmax: exp differs in its last places."""
    wide = [isa for isa in _C.isas() if isa != "baseline"]
    made, found = program(shape, False), []
    for isa in wide:
        monkeypatch.setenv("FASTGEN_ISA", isa)
        found.append(run(CpuMachine(made, heads.Bernoulli()), made, contexts(shape)))
    assert all(torch.equal(other, found[0]) for other in found)


def test_a_query_without_keys_gives_zeros(isa):
    made = program((2, 1, 8, 8), True)
    made.key_runs = [KeyRun(AccessMap(0, 0, 0), 0, AccessMap(0, 1, -4), KEYS, 1)]
    made.key_sets = [KeySet(0, 1)]
    generator = random.Random(0)
    given = [torch.full((1, n, c), generator.random()) for n, c in ((QUERIES, 16), (KEYS, 8), (KEYS, 8))]
    for machine in (CpuMachine, ReferenceMachine):
        found = run(machine(made, heads.Bernoulli()), made, given)
        assert not found[:, :5].any()
        torch.testing.assert_close(found[:, 5:], given[2][:, :1, :1].expand(1, QUERIES - 5, 16), rtol=1e-6, atol=0)
