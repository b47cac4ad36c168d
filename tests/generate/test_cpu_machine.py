"""The C++ machine: the reference machine's samples, bitwise the same however the work is split; errors, not crashes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import time

import pytest
import torch
from torch import Tensor

from fastgen.generate import heads
from fastgen.generate.ir.instructions import DENSE, PIXEL, ROW, STATE, Buffer, Segment
from fastgen.generate.ir.program import Program
from fastgen.generate.machines.batch import GenerationBatch
from fastgen.generate.machines.reference import ReferenceMachine
from tests.generate.hand_programs import CASES, Assembler, Case, op
from tests.generate.random_programs import causal
from tests.generate.test_reference_machine import event, machine_parameters
from tests.generate.test_reference_machine import start as start_case

_C = pytest.importorskip("fastgen._C", reason="no compiled extension")
from fastgen.generate.machines.cpu import CpuMachine  # noqa: E402

SCORES = ("state", "levels", "log_prob", "proposal_log_prob")


def same(one: GenerationBatch, other: GenerationBatch, samples: slice = slice(None)) -> bool:
    """Bitwise, NaN included; `samples` picks those of `other`."""
    return all(
        torch.equal(getattr(one, name).nan_to_num(nan=-7e77 if "prob" in name else -7e33),
                    getattr(other, name)[samples].nan_to_num(nan=-7e77 if "prob" in name else -7e33))
        for name in SCORES
    )  # fmt: skip


def context(batch: int) -> Tensor:
    return torch.randn(batch, 1, 6, generator=torch.Generator().manual_seed(3))


def start(program: Program, batch: int, **options) -> GenerationBatch:
    options.setdefault("levels", torch.full((batch, 1, program.steps), torch.nan))
    return GenerationBatch(
        state=torch.full((batch, program.state_size + 3), torch.nan),
        contexts=[context(64)[:batch].contiguous()],
        seed=5,
        samples=torch.arange(batch),
        log_prob=torch.zeros(batch, dtype=torch.float64),
        proposal_log_prob=torch.zeros(batch, dtype=torch.float64),
        **options,
    )


def generate(machine, batch: int, chunks: list[int] | None = None, **options) -> GenerationBatch:
    run = start(machine.program, batch, **options)
    machine.prologue(run)
    times = [0, *(chunks or []), machine.program.steps]
    for t0, t1 in itertools.pairwise(times):
        machine.advance(run, t0, t1)
    return run


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


@pytest.mark.parametrize("threads", [1, 2])
def test_hand_made_programs(isa, case, threads):
    """The draws are the reference machine's, the parameters as near to the float64 network as its float32 version."""
    expected = start_case(case)
    ReferenceMachine(case.program, case.head).advance(expected, 0, case.program.steps)
    run = start_case(case, threads=threads)
    run.state.fill_(torch.nan)
    machine = CpuMachine(case.program, case.head)
    machine.prologue(run)
    machine.advance(run, 0, case.program.steps)
    if not case.head.feed_raw:
        exact, single = (
            case.parameters(event(case, run), dtype).flatten(2) for dtype in (torch.float64, torch.float32)
        )
        floor = torch.finfo(torch.float32).eps * exact.abs().max()
        assert (machine_parameters(case, run) - exact).abs().max() <= 2 * (single - exact).abs().max() + floor
    if case.head.levels:
        assert torch.equal(run.levels, expected.levels)
    assert torch.equal(run.state.isnan(), expected.state.isnan())


@functools.cache
def reference_run(seed: int) -> tuple[GenerationBatch, Tensor]:
    """The reference machine's run, and how far weights that are off by the bound on rounding move its state."""
    program, head = causal(seed)
    reference = ReferenceMachine(program, head)
    expected = generate(reference, 3)
    known = {"known": torch.ones_like(expected.levels, dtype=torch.bool), "levels": expected.levels}
    roundings = max(i.body.segment1 - i.body.segment0 for i in program.computes) * 64 + 10
    spread = torch.zeros(())
    for _ in range(2):
        noise = (2 * torch.rand_like(program.weights) - 1) * roundings * 2.0**-24
        reference.refresh(program.weights * (1 + noise), program.constants)
        moved = (generate(reference, 3, **known).state - expected.state).nan_to_num().abs().max()
        spread = torch.maximum(spread, moved)
    return expected, spread


@pytest.mark.parametrize("seed", range(4))
def test_random_programs(isa, seed):
    program, head = causal(seed)
    expected, spread = reference_run(seed)
    run = generate(CpuMachine(program, head), 3, threads=2)
    assert torch.equal(run.levels, expected.levels)
    assert (run.state - expected.state).nan_to_num().abs().max() <= spread
    assert torch.equal(run.state.isnan(), expected.state.isnan())


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("seed", range(2))
def test_one_sample_however_the_work_is_split(isa, seed, weights):
    program, head = causal(seed)
    machine = CpuMachine(program, head, weights)
    whole = generate(machine, 64)
    assert not same(whole, generate(machine, 64, temperature=0.5))
    for batch, threads, chunks in (
        (64, 2, [1, 2, 17]),
        (64, 3, None),
        (7, 1, [20]),
        (7, 2, None),
        (1, 1, None),
        (1, 2, [3]),
    ):
        assert same(generate(machine, batch, chunks, threads=threads, temperature=1.0), whole, slice(0, batch))


@pytest.mark.parametrize("threads", [1, 2])
def test_cells_that_may_run_together_may_run_apart(isa, threads):
    program, head = causal(1)
    assert any(i.body.block > 1 for i in program.computes)
    machine, scores = CpuMachine(program, head), ("levels", "log_prob", "proposal_log_prob")
    together = generate(machine, 20)
    for batch, chunks in ((20, None), (1, [4, 5, 18])):
        apart = generate(machine, batch, chunks, ahead=False, threads=threads)
        assert all(torch.equal(getattr(apart, name), getattr(together, name)[:batch]) for name in scores)
    known = torch.ones_like(together.levels, dtype=torch.bool)
    absorbed = start(program, 20, levels=together.levels, known=known, ahead=False, threads=threads)
    machine.prologue(absorbed)
    machine.absorb(absorbed, 0, program.steps)
    assert torch.equal(absorbed.log_prob, together.log_prob)
    reference = generate(ReferenceMachine(program, head), 3, ahead=False)
    assert torch.equal(reference.levels, together.levels[:3])


@pytest.mark.parametrize("seed", range(2))
def test_absorb_is_advance(isa, seed):
    """Bitwise, state and scores included, for any lookahead, split and number of threads."""
    for lookahead in (1, 5, 30):
        program, head = causal(seed, lookahead=lookahead)
        machine = CpuMachine(program, head)
        drawn = generate(machine, 5)
        known = torch.zeros_like(drawn.levels, dtype=torch.bool)
        known[:, :, :27] = True
        for threads, middle in ((1, 0), (1, 13), (2, 20)):
            run = start(program, 5, known=known, levels=drawn.levels.where(known, torch.nan), threads=threads)
            machine.prologue(run)
            machine.absorb(run, 0, middle)
            machine.absorb(run, middle, 27)
            assert (run.proposal_log_prob == 0).all()
            machine.advance(run, 27, program.steps)
            run.proposal_log_prob = drawn.proposal_log_prob
            assert same(run, drawn)


def test_rows_of_many_cells(isa):
    """A row phase wide enough for every size of panel, split over threads by cells and by lanes."""
    size, width, levels = 13, 40, 2
    program = Program(size * size, size, state_size=size * size * (1 + width) + levels - 1, lookahead=1)
    program.buffers = [Buffer(STATE, 1, size * size, 0), Buffer(STATE, width, size * size, size * size),
                       Buffer(STATE, 1, 1, size * size * (1 + width))]  # fmt: skip
    new = Assembler(program)
    taps = [
        new.operand(0, 1, row=size, offset=d - size, row0=1, column0=max(0, -d), column1=size - max(0, d))
        for d in range(-2, 3)
    ]
    row = [Segment(tap, DENSE, i, 1) for i, tap in enumerate(taps)]
    store = op("store", 0, 0, new.operand(1, width, row=size))
    new.compute(
        row,
        [op("tanh", 0, 0), store],
        parts=1,
        lanes=width,
        weight=new.weight(torch.randn(5, width)),
        when=ROW,
        row1=size,
        column1=size,
    )
    left = new.operand(0, 1, row=size, offset=-1, column0=1)
    new.compute(
        [Segment(new.operand(1, width, row=size), DENSE, 0, width), Segment(left, DENSE, width, 1)],
        [op("store", 0, 0, new.operand(2, 1, column=0))],
        parts=1, lanes=1, weight=new.weight(torch.randn(width + 1, 1)), row1=size, column1=size,
    )  # fmt: skip
    read, write = new.operand(2, 1, column=0), new.operand(0, 1, row=size)
    new.draw(read, write, row=size, row1=size, column1=size)
    program, head = new.finish(), heads.Bernoulli("symmetric")
    machine = CpuMachine(program, head)
    whole = generate(machine, 9)
    assert torch.equal(whole.levels, generate(ReferenceMachine(program, head), 9).levels)
    for batch, threads in ((1, 1), (1, 2), (5, 3), (9, 2)):
        assert same(generate(machine, batch, threads=threads), whole, slice(0, batch))


def test_one_program_for_each_step():
    """Records that run at one step only (an order over features) are found, in the order of the program."""
    steps = 9
    program = Program(steps, steps, state_size=2 * steps, lookahead=1)
    program.buffers = [Buffer(STATE, 1, steps, 0), Buffer(STATE, 1, steps, steps)]
    new = Assembler(program)
    matrix = new.weight(torch.randn(steps, 1))
    for t in range(steps):
        inputs = [new.operand(0, 1, column=0, offset=i) for i in range(t)]
        store = op("store", 0, 0, new.operand(1, 1, column=0, offset=t))
        new.compute(
            [Segment(o, DENSE, i, 1) for i, o in enumerate(inputs)], [store],
            parts=1, lanes=1, delay=t, column1=1, weight=matrix, bias=new.constant(torch.randn(1)),
        )  # fmt: skip
    for t in range(steps):
        read, write = new.operand(1, 1, column=0, offset=t), new.operand(0, 1, column=0, offset=t)
        new.draw(read, write, column=0, offset=t, delay=t, column1=1)
    program, head = new.finish(), heads.Bernoulli("symmetric")
    whole = generate(CpuMachine(program, head), 40)
    assert torch.equal(whole.levels, generate(ReferenceMachine(program, head), 40).levels)
    assert same(generate(CpuMachine(program, head), 3, [4, 5], threads=2), whole, slice(0, 3))


def test_refresh_is_a_new_machine(isa):
    (program, head), (other, _) = causal(1), causal(1)
    other.weights, other.constants = torch.randn_like(program.weights), torch.randn_like(program.constants)
    for weights in ("float32", "bfloat16", "int8"):
        machine = CpuMachine(program, head, weights)
        before = generate(machine, 2)
        machine.refresh(other.weights, other.constants)
        assert same(generate(machine, 2), generate(CpuMachine(other, head, weights), 2))
        machine.refresh(program.weights, program.constants)
        assert same(generate(machine, 2), before)
    with pytest.raises(ValueError, match="weights has"):
        machine.refresh(other.weights[1:], other.constants)


@pytest.mark.parametrize("threads", [1, 2])
def test_errors_name_what_is_wrong(threads):
    program, head = causal(0)
    machine = CpuMachine(program, head)

    def run(**options) -> GenerationBatch:
        made = start(program, 4, threads=threads, **options)
        machine.prologue(made)
        return made

    for change, message in (
        ({"state": torch.zeros(4, program.state_size - 1)}, "state has .* the program needs"),
        ({"state": torch.zeros(4, program.state_size, dtype=torch.float64)}, "state has dtype float64"),
        ({"state": torch.zeros(8, program.state_size)[::2]}, "state must be contiguous"),
        ({"levels": torch.zeros(3, 1, 40)}, "levels has shape"),
        ({"levels": torch.zeros(4, 0, 40)}, "levels has 0 channels"),
        ({"samples": torch.zeros(4)}, "samples has dtype float32"),
        ({"known": torch.zeros(4, 1, 39, dtype=torch.bool)}, "known has shape"),
        ({"log_prob": torch.zeros(4)}, "log_prob has dtype float32"),
        ({"contexts": []}, "contexts has 0 tensors"),
        ({"contexts": [torch.zeros(4, 1, 5)]}, r"contexts\[0\] has 5 channels"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0"),
        ({"top_k": -1}, r"top_k must be .*, got -1"),
        ({"top_p": 1.5}, r"top_p must be .*, got 1\.5"),
        ({"threads": 0}, "threads is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            machine.advance(dataclasses.replace(run(), **change), 0, 1)
    for steps in ((0, 41), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match=r"steps must be within 0 \.\. 40"):
            machine.advance(run(), *steps)
    with pytest.raises(ValueError, match=r"contexts\[0\] has 0 positions; position 0 is needed"):
        machine.prologue(dataclasses.replace(run(), contexts=[torch.zeros(4, 0, 6)]))
    with pytest.raises(ValueError, match="known is False for position 0"):
        machine.absorb(run(), 0, 1)
    with pytest.raises(ValueError, match="step 8 draws position 8"):
        machine.advance(run(levels=torch.zeros(4, 1, 8)), 0, 40)
    bad = torch.zeros(4, 1, 40)
    bad[2, 0, 3] = 0.5
    with pytest.raises(ValueError, match=r"a known level is .*, at position 3 of item 2"):
        machine.advance(run(levels=bad, known=torch.ones_like(bad, dtype=torch.bool)), 0, 40)
    spoiled = run()
    machine.advance(spoiled, 0, 3)
    offset = program.buffers[1].offset
    spoiled.state[1, offset : offset + program.buffers[1].positions] = 1e9
    with pytest.raises(ValueError, match=r"an index must be a whole number in 0 \.\. .*, got 1e\+09 at step 3"):
        machine.advance(spoiled, 3, 40)
    machine.refresh(program.weights * torch.nan, program.constants)
    with pytest.raises(ValueError, match=r"the network.s output is NaN.* at position 0"):
        machine.advance(run(), 0, 40)
    machine.refresh(program.weights, program.constants)
    assert same(generate(machine, 4, threads=threads), generate(CpuMachine(program, head), 4))


def test_no_table_entry_is_trusted():
    """Any number of any record replaced by one far outside: an error that names the record, never a wrong address."""
    program, head = causal(2)
    choose = random.Random(0)
    messages = []
    for name in ("buffers", "operands", "segments", "weight_table", "operations", "instructions", "computes", "draws"):
        for _ in range(60):
            tensors = {key: tensor.clone() for key, tensor in program.to_tensors().items()}
            table = tensors[name]
            row, column = choose.randrange(table.shape[0]), choose.randrange(table.shape[1])
            table[row, column] = choose.choice([-(2**62), -5, -1, 7, 100, 12345, 2**31, 2**62])
            try:
                broken = Program.from_tensors(tensors)
                machine = CpuMachine(broken, head)
            except ValueError as error:
                messages.append(str(error))
                continue
            if broken.state_size <= 2**20 and all(i.when == PIXEL or i.domain.columns <= 1000 for i in broken.computes):
                run = start(broken, 2)
                try:
                    machine.prologue(run)
                    machine.advance(run, 0, 12)
                except ValueError:
                    pass
    assert len(messages) > 200
    named = ("buffers[", "operands[", "segments[", "weight_table[", "operations[", "instructions[", "computes must")
    assert all(message.startswith(named) for message in messages)


def test_every_instruction_needs_a_body_of_its_kind():
    """What ``Program.from_tensors`` refuses, the machine does not rely on."""
    program, head = causal(2)
    tables = program.tables()
    unknown, swapped = tables["instructions"].copy(), tables["instructions"].copy()
    unknown[1, 0], swapped[0, 0] = 3, 1
    for changes, said in (
        ({"instructions": unknown}, r"instructions\[1\]: kind is 3, allowed are 0 \.\. 2"),
        ({"instructions": swapped}, "draws has 1 rows, more instructions are of this kind"),
        ({"computes": tables["computes"][1:]}, "computes has .* rows, more instructions are of this kind"),
        ({"instructions": tables["instructions"][1:]}, "instructions has .* of kind compute"),
        ({"instructions": tables["instructions"][:, 1:]}, r"tables\['instructions'\] must have 14 columns"),
    ):
        with pytest.raises(ValueError, match=said):
            _C.Machine(tables | changes, head.spec(), "float32")


def test_machine_is_chosen_by_name(monkeypatch):
    program, head = causal(0)
    with pytest.raises(ValueError, match="weights must be one of float32, bfloat16, int8, got 'float8'"):
        CpuMachine(program, head, "float8")
    with pytest.raises(ValueError, match="the head needs 7 parameters for 1 channels"):
        CpuMachine(program, heads.Categorical(7))
    monkeypatch.setenv("FASTGEN_ISA", "sse9")
    with pytest.raises(ValueError, match="FASTGEN_ISA is 'sse9'; this build and processor run baseline"):
        CpuMachine(program, head)


def test_waiting_threads_sleep():
    program, head = causal(0)
    machine = CpuMachine(program, head)
    generate(machine, 1, threads=2)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


def test_probes():
    assert _C.read_bandwidth(1 << 20, 2, 5) > 0
    assert _C.fma_peak(1) > 0
    with pytest.raises(ValueError, match="threads is 0"):
        _C.fma_peak(0)
    with pytest.raises(ValueError, match="bytes is 100"):
        _C.read_bandwidth(100, 1, 1)
    assert _C.build_info().keys() >= {"compiler", "architecture"}
