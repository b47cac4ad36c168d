"""Keys and values in bfloat16 and int8: as near to float32 as the format allows, and as exact in every other way."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re

import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen.generate import VerificationError, heads
from fastgen.generate.files.tensor_file import read_tensor_file, write_tensor_file
from fastgen.generate.ir.instructions import (
    BFLOAT16,
    FORMATS,
    INT8,
    PROLOGUE,
    STATE,
    AccessMap,
    Box,
    Buffer,
    Compute,
    Instruction,
    IterationDomain,
    Operand,
    Operation,
)
from fastgen.generate.ir.opcodes import OPCODE
from fastgen.generate.ir.program import Program
from fastgen.generate.lower.key_format import with_key_format
from fastgen.generate.machines.batch import GenerationBatch
from fastgen.generate.machines.reference import ReferenceMachine
from fastgen.generate.verification.self_check import self_check
from tests.generate.compiled import MACHINES
from tests.generate.however_made import SAMPLES, SEED, check_however_made
from tests.generate.public_attention import DEPTH, HEADS, LEVELS, WAYS, masked_fill
from tests.generate.seeded import built
from tests.generate.test_attention import STEPS, compiled, decoder

_C = pytest.importorskip("fastgen._C", reason="no compiled extension")
from fastgen.generate.machines.cpu import CpuMachine  # noqa: E402
from tests.generate.test_attend_kernels import (  # noqa: E402
    BATCH,
    KEYS,
    QUERIES,
    SCALE,
    SHAPES,
    contexts,
    exact,
    program,
    seen,
)

ROUNDED = ("bfloat16", "int8")
UNIT = {"bfloat16": 2.0**-9, "int8": 0.5 / 127}
"""Half a step: of a value's size in bfloat16, of the largest size of its group in int8."""


SOME_WAYS = ("masked_fill", "rotary_grouped", "rotary_pairs", "linear_bias_in_a_window", "strided_heads", "retention")


# ---- instructions


def rounding(values: Tensor, name: str, width: int) -> Tensor:
    """Rounds float32 by the definition of a format, with one scale for ``width`` channels."""
    if name == "bfloat16":
        fraction, exponent = torch.frexp(values)
        return torch.ldexp((fraction * 2**8).round(), exponent - 8)
    grouped = values.unflatten(-1, (-1, width))
    scale = grouped.abs().amax(-1, keepdim=True) / 127
    return ((grouped / scale).round() * scale).flatten(-2)


def stored(shape: tuple[int, int, int, int], softmax: bool, name: str) -> Program:
    """The attention of ``test_attend_kernels``, whose keys and values Computes store in the state first."""
    made, (_, groups, depth, width) = program(shape, softmax), shape
    for place, (context, size) in enumerate(((1, depth), (2, width))):
        channels, first = groups * size, len(made.operands)
        made.buffers.append(Buffer(STATE, channels, KEYS, made.state_size))
        made.state_size += KEYS * channels
        made.operands += [
            Operand(buffer, 0, 1, channels, AccessMap(0, 1, 0), Box()) for buffer in (context, len(made.buffers) - 1)
        ]
        setattr(made.instructions[-1].body, ("key", "value")[place], first + 1)
        operation = len(made.operations)
        made.operations += [Operation(OPCODE["load"], 0, first), Operation(OPCODE["store"], 0, 0, first + 1)]
        body = Compute(0, 0, -1, -1, -1, 0, channels, operation, operation + 2, 1)
        made.instructions.insert(0, Instruction(PROLOGUE, 0, 0, IterationDomain(1, 1, 0, 0, 1, 0, KEYS), body))
    made.instructions[-1].level = 1
    return with_key_format(made, name)


def run(machine, made: Program, given: list[Tensor], threads: int = 1) -> tuple[Tensor, Tensor]:
    """Returns the outputs ``[B, queries, channels]``, and what the state holds of keys and values, as integers."""
    state = torch.zeros(len(given[0]), made.state_size + 16)
    samples = torch.arange(len(given[0]))
    batch = GenerationBatch(state, given, 0, samples, torch.zeros(len(given[0]), 1, 1), threads=threads)
    machine.prologue(batch)
    out = made.buffers[3]
    end = out.offset + out.positions * out.stride
    return state[:, out.offset : end].reshape(len(given[0]), QUERIES, -1), state[:, end : made.state_size].view(
        torch.int32
    )


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_are_those_of_rounded_keys_in_float64(shape, name, softmax, isa):
    made, given = stored(shape, softmax, name), contexts(shape)
    assert {b.format for b in made.buffers[4:]} == {FORMATS.index(name)}
    rounded = [given[0], *(rounding(c, name, size) for c, size in zip(given[1:], shape[2:], strict=True))]
    wanted, bound = exact(shape, softmax, rounded)
    for machine in (CpuMachine, ReferenceMachine):
        found, _ = run(machine(made, heads.Bernoulli()), made, given)
        assert ((found - wanted).abs() <= bound).all()


@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_machines_store_the_same_bits(shape, name, isa):
    made, given = stored(shape, True, name), contexts(shape)
    cpu, reference = CpuMachine(made, heads.Bernoulli()), ReferenceMachine(made, heads.Bernoulli())
    _, held = run(cpu, made, given)
    assert torch.equal(run(reference, made, given)[1], held)
    assert torch.equal(run(cpu, made, given, threads=3)[1], held)


@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_error_is_that_of_the_format(shape, name):
    """Scores are off by half a step of each channel of the key, outputs by that of the values, and by the weights'."""
    count, groups, *_ = shape
    made, given = stored(shape, True, name), contexts(shape)
    float32 = stored(shape, True, "float32")
    plain, _ = run(CpuMachine(float32, heads.Bernoulli()), float32, given)
    found, _ = run(CpuMachine(made, heads.Bernoulli()), made, given)
    query, key, value = (c.double().unflatten(-1, (n, -1)) for c, n in zip(given, (count, groups, groups), strict=True))
    _, rounding_of_sums = exact(shape, True, given)
    for at in range(QUERIES):
        keys = seen(at)
        k, v = (t[:, keys].repeat_interleave(count // groups, 2) for t in (key, value))  # [B, S, heads, channels]
        size_k, size_v = ((t if name == "bfloat16" else t.abs().amax(-1, keepdim=True)).abs() for t in (k, v))
        off = (UNIT[name] * size_k * query[:, at, None].abs()).sum(-1).amax(1) * SCALE  # [B, heads]
        weights = ((k * query[:, at, None]).sum(-1) * SCALE).softmax(1)  # each is off by a factor of exp(+- 2 off)
        from_keys = (2 * off).expm1()[..., None] * torch.einsum("bsh,bshc->bhc", weights, v.abs() + UNIT[name] * size_v)
        from_values = UNIT[name] * torch.einsum("bsh,bshc->bhc", weights, size_v.expand_as(v))
        allowed = (from_keys + from_values).flatten(1) + 2 * (2 * off).exp().amax() * rounding_of_sums[:, at]
        assert ((found[:, at] - plain[:, at]).abs() <= allowed).all()
    assert not torch.equal(found, plain)


@pytest.mark.parametrize("name", ROUNDED)
def test_bits_depend_on_nothing_but_the_numbers(name, isa):
    for shape in SHAPES:
        made, given = stored(shape, True, name), contexts(shape)
        machine = CpuMachine(made, heads.Bernoulli())
        whole, _ = run(machine, made, given)
        assert torch.equal(run(machine, made, given, threads=2)[0], whole)
        for row in range(BATCH):
            alone = [context[row : row + 1] for context in given]
            assert torch.equal(run(machine, made, alone, 3)[0], whole[row : row + 1])


@pytest.mark.parametrize("name", ROUNDED)
def test_wide_instruction_sets_agree_bit_for_bit_in_the_sums(name, monkeypatch):
    for shape in SHAPES:
        made, found = stored(shape, False, name), []
        for wide in [name for name in _C.isas() if name != "baseline"]:
            monkeypatch.setenv("FASTGEN_ISA", wide)
            found.append(run(CpuMachine(made, heads.Bernoulli()), made, contexts(shape))[0])
        assert all(torch.equal(other, found[0]) for other in found)


@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize("value", [0.0, 1e-42, 1e30, float("inf"), float("nan")])
def test_keys_of_extreme_size(value, name, isa):
    """A scale of 0, one that is subnormal, and what is not finite: as the reference, and not finite stays so."""
    shape = (2, 1, 8, 8)
    made, given = stored(shape, False, name), contexts(shape)
    given[2][:, :, ::3] = value
    given[2] *= 1e-3 if value == 1e-42 else 1.0
    found, held = run(CpuMachine(made, heads.Bernoulli()), made, given)
    wanted, bits = run(ReferenceMachine(made, heads.Bernoulli()), made, given)
    assert torch.equal(found.isfinite(), wanted.isfinite())
    assert bool(found.isfinite().all()) == (value < 1e39)
    if value < 1e39:
        assert torch.equal(held, bits)
        assert ((found - wanted).abs() <= 2.0**-20 * found.abs().amax()).all()  # sums of 40 terms in float32


# ---- samplers


@pytest.mark.parametrize("kv", ROUNDED)
@pytest.mark.parametrize("way", SOME_WAYS)
def test_a_sample_is_the_same_however_it_is_made(way, kv, tmp_path):
    sampler = compiled(decoder(WAYS[way], keys=2 if way == "rotary_grouped" else HEADS), kv=kv)
    whole, again = check_however_made(sampler, tmp_path)
    assert torch.equal(sampler.sample(20, seed=SEED)[:SAMPLES], whole)
    known = torch.arange(STEPS).expand(SAMPLES, STEPS) < 9
    assert torch.equal(sampler.sample(SAMPLES, seed=SEED, known=whole, known_mask=known), whole)
    assert again.kv == kv
    assert str(again.program) == str(sampler.program)


@pytest.mark.parametrize("kv", ROUNDED)
@pytest.mark.parametrize("way", SOME_WAYS)
def test_the_machines_agree(way, kv):
    module = decoder(WAYS[way], keys=2 if way == "rotary_grouped" else HEADS)
    samples = [compiled(module, machine=machine, kv=kv, verify=False).sample(4, seed=3) for machine in MACHINES]
    assert all(torch.equal(samples[0], other) for other in samples)


@pytest.mark.parametrize("way", ["rotary_grouped", "rotary_pairs", "linear_bias_in_a_window"])
def test_all_keys_and_values_are_rounded(way):
    """Where parts of a head are rotated, too: they are gathered before a scale is found."""
    module = decoder(WAYS[way], keys=2 if way == "rotary_grouped" else HEADS)
    plain = compiled(module)
    for kv in ROUNDED:
        sampler = compiled(module, kv=kv)
        for attend in sampler.program.attends:
            for number in (attend.body.key, attend.body.value):
                buffer = sampler.program.buffers[sampler.program.operands[number].buffer]
                assert (FORMATS[buffer.format], buffer.group) == (kv, DEPTH if kv == "int8" else 0)
        assert sampler.explain().memory.keys * 2 == plain.explain().memory.keys  # of 4 channels with their scale, too
        assert re.search(r"of state \([\d.]+ \w+ keys and values\)", str(sampler.explain()))


def test_a_program_without_end_streams():
    sampler = compiled(decoder(WAYS["linear_bias_in_a_window"]), 400, kv="int8")
    whole = sampler.sample(3, seed=2)
    chunks = list(sampler.stream(batch=3, steps=400, chunk=90, seed=2))
    assert torch.equal(torch.cat(chunks, -1), whole)


@pytest.mark.parametrize("kv", ROUNDED)
def test_refresh_and_copies_keep_the_format(kv):
    sampler = compiled(decoder(masked_fill), kv=kv)
    whole = sampler.sample(4, seed=3)
    for other in (copy.copy(sampler), copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert torch.equal(other.sample(4, seed=3), whole)
    with torch.no_grad():
        sampler.module.head.weight.mul_(-1.0)
    assert not torch.equal(sampler.refresh().sample(4, seed=3), whole)


@pytest.mark.parametrize("kv", ROUNDED)
def test_a_wrong_program_is_caught_all_the_same(kv):
    sampler = compiled(decoder(masked_fill), kv=kv, verify=False)
    self_check(sampler)
    sampler.program.weights[:40] += 0.01
    with pytest.raises(VerificationError, match="the compiled program is not the module"):
        self_check(sampler)


# ---- what is refused


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="kv must be one of 'float32', 'bfloat16', 'int8', got 'float16'"):
        compiled(decoder(masked_fill), kv="float16")


def test_a_network_without_attention_is_refused():
    module = built(lambda: nn.Sequential(nn.Embedding(LEVELS, 8), nn.Linear(8, LEVELS)))
    with pytest.raises(ValueError, match="kv must be 'float32' where no attention has keys and values of its own"):
        compiled(module, adapter=lambda out: out.transpose(1, 2), kv="int8")


def _read_elsewhere(p: Program) -> None:
    key = p.attends[0].body.key
    load = next(o for o in p.operations if o.opcode == OPCODE["load"])
    p.operands[load.a] = dataclasses.replace(p.operands[load.a], buffer=p.operands[key].buffer)


def _half_a_head(p: Program) -> None:
    p.operands[p.attends[0].body.key].channel = 2


def _scale_of_two_heads(p: Program) -> None:
    p.buffers[p.operands[p.attends[0].body.value].buffer].group = 2 * DEPTH


def _no_scale(p: Program) -> None:
    p.buffers[p.operands[p.attends[0].body.value].buffer].group = 0


def _odd_scale(p: Program) -> None:
    p.buffers[p.operands[p.attends[0].body.value].buffer].group = DEPTH - 1


def _input(p: Program) -> None:
    p.buffers[p.operands[p.draws[0].body.input0].buffer].format = BFLOAT16


def _constant(p: Program) -> None:
    next(b for b in p.buffers if b.where != STATE).format = BFLOAT16


def _no_format(p: Program) -> None:
    p.buffers[p.operands[p.attends[0].body.value].buffer].format = INT8 + 1


@pytest.mark.parametrize(
    "spoil",
    [_read_elsewhere, _half_a_head, _scale_of_two_heads, _no_scale, _odd_scale, _input, _constant, _no_format],
)
def test_a_file_whose_formats_do_not_fit_is_refused(spoil, tmp_path):
    compiled(decoder(masked_fill), kv="int8").save(tmp_path / "sampler")
    tensors, saved = read_tensor_file(tmp_path / "sampler", "program")
    made = Program.from_tensors(tensors)
    spoil(made)
    write_tensor_file(tmp_path / "sampler", "program", made.to_tensors(), saved)
    with pytest.raises(ValueError, match=r"(buffers|operations|instructions|operands|segments)\["):
        fastgen.Sampler.load(tmp_path / "sampler")
    with pytest.raises(ValueError, match=r"(buffers|operations|instructions|operands|segments)\["):
        CpuMachine(made, heads.Categorical(LEVELS))


def test_a_file_that_names_another_format_is_refused(tmp_path):
    compiled(decoder(masked_fill), kv="int8").save(tmp_path / "sampler")
    tensors, saved = read_tensor_file(tmp_path / "sampler", "program")
    write_tensor_file(tmp_path / "sampler", "program", tensors, saved | {"kv": "bfloat16"})
    with pytest.raises(ValueError, match="kv must be the format of the program's keys and values, got 'bfloat16'"):
        fastgen.Sampler.load(tmp_path / "sampler")
