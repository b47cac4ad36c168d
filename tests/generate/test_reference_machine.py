"""The reference machine against plain PyTorch, on step programs written by hand."""

from __future__ import annotations

import math
from operator import attrgetter

import pytest
import torch
from torch import Tensor

from fastgen.generate import heads
from fastgen.generate.ir.instructions import CONSTANT, PROLOGUE, STATE, UNBOUNDED, Buffer, Operand, columns_of
from fastgen.generate.ir.opcodes import OPCODES
from fastgen.generate.ir.program import Program
from fastgen.generate.machines.batch import GenerationBatch
from fastgen.generate.machines.reference import ReferenceMachine
from fastgen.generate.noise import Noise
from tests.generate.hand_programs import CASES, Assembler, Case, op, sequence

SEED = 11


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def start(
    case: Case, batch: int = 3, known: Tensor | None = None, levels: Tensor | None = None, **options
) -> GenerationBatch:
    channels = case.event_shape[0] if len(case.event_shape) > 1 else 1
    run = GenerationBatch(
        state=torch.full((batch, case.program.state_size + 5), torch.nan),
        contexts=case.contexts,
        seed=SEED,
        samples=torch.arange(batch) + 4,
        levels=torch.full((batch, channels, case.program.steps), torch.nan) if levels is None else levels,
        known=known,
        log_prob=torch.zeros(batch, dtype=torch.float64),
        proposal_log_prob=torch.zeros(batch, dtype=torch.float64),
        **options,
    )
    ReferenceMachine(case.program, case.head).prologue(run)
    return run


def generate(case: Case, **options) -> GenerationBatch:
    run = start(case, **options)
    ReferenceMachine(case.program, case.head).advance(run, 0, case.program.steps)
    return run


def event(case: Case, run: GenerationBatch) -> Tensor:
    levels = run.levels.reshape(-1, *case.event_shape)
    return levels.long() if case.head.levels else levels


def machine_parameters(case: Case, run: GenerationBatch) -> Tensor:
    """The output buffer, which keeps all positions and is the last of the state."""
    values = run.state[:, : case.program.state_size]
    count = case.parameters(event(case, run), torch.float64).shape[2:].numel()
    return values[:, -case.program.steps * count :].reshape(len(values), case.program.steps, count)


def test_parameters_equal_the_teacher_forced_network(case):
    run = generate(case)
    if case.head.feed_raw:
        assert not run.state[:, : case.program.state_size].isnan().any()
        return
    exact = case.parameters(event(case, run), torch.float64).flatten(2)
    single = case.parameters(event(case, run), torch.float32).flatten(2)
    floor = torch.finfo(torch.float32).eps * exact.abs().max()
    assert (machine_parameters(case, run) - exact).abs().max() <= 2 * (single - exact).abs().max() + floor


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_draws_are_the_heads(case, temperature):
    run = generate(case, temperature=temperature)
    parameters = machine_parameters(case, run)
    groups = case.parameters(event(case, run), torch.float64).shape[2]
    scores = torch.zeros(2, 3, dtype=torch.float64)
    for position in range(case.program.steps):
        drawn = case.head.draw(
            parameters[:, position].unflatten(-1, (groups, -1)),
            Noise(SEED, run.samples, position),
            temperature=temperature,
        )
        assert torch.equal(drawn.levels, run.levels[:, :, position])
        scores += torch.stack([drawn.log_prob, drawn.proposal_log_prob])
    assert torch.equal(scores.isnan(), torch.full_like(scores, case.head.feed_raw, dtype=torch.bool))
    torch.testing.assert_close(
        torch.stack([run.log_prob, run.proposal_log_prob]), scores, rtol=0, atol=0, equal_nan=True
    )


def test_log_prob_is_that_of_the_finished_sample(case):
    if case.head.feed_raw:
        with pytest.raises(ValueError, match="feed_raw"):
            case.head.check_sampling(1.0, scored=True)
        return
    run = generate(case, temperature=1.7)
    assert_scores(case, run)
    assert (run.proposal_log_prob - run.log_prob).abs().min() > 0


def assert_scores(case: Case, run: GenerationBatch) -> None:
    """The accumulated log-probability is as near to the float64 network's as that of the network in float32."""
    parameters = [case.parameters(event(case, run), dtype) for dtype in (torch.float64, torch.float32)]
    levels = run.levels.flatten(2).transpose(1, 2).unflatten(-1, (parameters[0].shape[2], -1))
    levels = levels.long() if case.head.levels else levels
    exact, single = (case.head.group_log_prob(p, levels).double() for p in parameters)
    error = 2 * (single - exact).abs().sum((1, 2)) + torch.finfo(torch.float32).eps * exact.abs().sum((1, 2))
    assert ((run.log_prob - exact.sum((1, 2))).abs() <= error).all()


def test_chunks_change_nothing(case):
    whole, parts = generate(case), start(case)
    machine, steps = ReferenceMachine(case.program, case.head), case.program.steps
    for t0, t1 in ((0, 1), (1, 1), (1, 6), (6, steps)):
        machine.advance(parts, t0, t1)
    for name in ("state", "levels", "log_prob", "proposal_log_prob"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=0, atol=0, equal_nan=True)


def test_a_sample_does_not_know_its_batch(case):
    whole = generate(case)
    for slot in range(3):
        alone = case._replace(contexts=[c[slot : slot + 1] for c in case.contexts])
        run = start(alone, batch=1)
        run.samples = whole.samples[slot : slot + 1]
        ReferenceMachine(case.program, case.head).advance(run, 0, case.program.steps)
        assert torch.equal(run.levels[0], whole.levels[slot])


def test_known_prefix_is_absorbed(case):
    whole, prefix = generate(case), 7
    known = torch.zeros_like(whole.levels, dtype=torch.bool)
    known[:, :, :prefix] = True
    levels = whole.levels.where(known, torch.nan)
    run = start(case, known=known, levels=levels)
    machine = ReferenceMachine(case.program, case.head)
    machine.absorb(run, 0, prefix)
    assert run.proposal_log_prob.isnan().all() if case.head.feed_raw else (run.proposal_log_prob == 0).all()
    with pytest.raises(ValueError, match=f"element of step {prefix}"):
        machine.absorb(run, prefix, prefix + 1)
    machine.advance(run, prefix, case.program.steps)
    if not case.head.feed_raw:
        assert torch.equal(run.levels, whole.levels)
        assert torch.equal(run.log_prob, whole.log_prob)


def test_known_elements_are_kept_and_scored(case):
    channels, steps = generate(case).levels.shape[1:]
    known = torch.rand(3, channels, steps) < 0.5
    levels = torch.randint(0, case.head.levels or 2, (3, channels, steps)).float()
    run = generate(case, known=known, levels=levels.where(known, torch.nan))
    assert torch.equal(run.levels[known], levels[known])
    assert not run.levels.isnan().any()
    if not case.head.feed_raw:
        assert_scores(case, run)


def test_stream_writes_levels_from_its_position():
    case = sequence()
    whole, run = generate(case), start(case)
    machine, chunks = ReferenceMachine(case.program, case.head), []
    for t0 in range(0, case.program.steps, 5):
        t1 = min(t0 + 5, case.program.steps)
        run.levels, run.position0 = torch.full((3, 1, t1 - t0), torch.nan), t0
        machine.advance(run, t0, t1)
        chunks.append(run.levels)
    assert torch.equal(torch.cat(chunks, -1), whole.levels)


def test_program_survives_its_tensors(case):
    loaded = Program.from_tensors(case.program.to_tensors())
    assert torch.equal(generate(case._replace(program=loaded)).levels, generate(case).levels)


def test_refresh_takes_new_weights():
    case, other = sequence(), sequence()
    machine, run = ReferenceMachine(case.program, case.head), start(case)
    machine.refresh(other.program.weights, other.program.constants)
    machine.advance(run, 0, case.program.steps)
    assert torch.equal(run.levels, generate(other).levels)
    with pytest.raises(ValueError, match="weights has shape"):
        machine.refresh(other.program.weights[1:], other.program.constants)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_rounded_weights(weights):
    case = sequence()
    machine = ReferenceMachine(case.program, case.head, weights)
    for rounded, full in zip(machine.matrices, ReferenceMachine(case.program, case.head).matrices, strict=True):
        step = full.abs() * 2.0**-8 if weights == "bfloat16" else full.abs().amax(0) / 254
        error = (rounded - full).abs()
        assert (error <= step * (1 + 1e-6)).all()
        assert error.max() > 0


def test_errors_name_what_is_wrong():
    case = sequence()
    with pytest.raises(ValueError, match=r"weights must be one of float32, bfloat16, int8.*, got 'float8'"):
        ReferenceMachine(case.program, case.head, "float8")
    machine, run = ReferenceMachine(case.program, case.head), start(case)
    with pytest.raises(ValueError, match=r"steps must be within .*, got 0 \.\. 99"):
        machine.advance(run, 0, 99)
    run.known, run.levels = torch.ones(3, 1, 14, dtype=torch.bool), torch.full((3, 1, 14), 5.0)
    with pytest.raises(ValueError, match=r"known level at position 0 is no whole number in 0 \.\. 4"):
        machine.advance(run, 0, 1)
    run = start(case)
    run.state[:, :2] = 5
    run.step = 3
    with pytest.raises(ValueError, match=r"an index must be a whole number in 0 \.\. 4"):
        machine.advance(run, 3, 4)
    machine.refresh(case.program.weights * torch.nan, case.program.constants)
    with pytest.raises(ValueError, match="output at position 0 is NaN"):
        machine.advance(start(case), 0, 1)


# What OPCODES says, on floats of Python: (a, b, c) of one lane, the numbers x = 0.75 and y = 1.25.
MEANING = {
    "neg": lambda a, b, c: -a, "abs": lambda a, b, c: abs(a), "exp": lambda a, b, c: math.exp(a),
    "log": lambda a, b, c: math.log(a) if a > 0 else math.nan,
    "log1p": lambda a, b, c: math.log1p(a) if a > -1 else math.nan,
    "expm1": lambda a, b, c: math.expm1(a), "sqrt": lambda a, b, c: math.sqrt(a) if a >= 0 else math.nan,
    "rsqrt": lambda a, b, c: a**-0.5 if a > 0 else math.nan, "reciprocal": lambda a, b, c: 1 / a,
    "tanh": lambda a, b, c: math.tanh(a), "sigmoid": lambda a, b, c: 1 / (1 + math.exp(-a)),
    "erf": lambda a, b, c: math.erf(a), "sin": lambda a, b, c: math.sin(a), "cos": lambda a, b, c: math.cos(a),
    "floor": lambda a, b, c: math.floor(a), "ceil": lambda a, b, c: math.ceil(a), "round": lambda a, b, c: round(a),
    "sign": lambda a, b, c: math.copysign(1, a), "relu": lambda a, b, c: max(a, 0.0),
    "elu": lambda a, b, c: a if a > 0 else 0.75 * math.expm1(a), "leaky_relu": lambda a, b, c: a if a > 0 else 0.75 * a,
    "softplus": lambda a, b, c: a if a * 0.75 > 1.25 else math.log1p(math.exp(a * 0.75)) / 0.75,
    "gelu": lambda a, b, c: a / 2 * (1 + math.erf(a / math.sqrt(2))),
    "add": lambda a, b, c: a + b, "sub": lambda a, b, c: a - b, "mul": lambda a, b, c: a * b,
    "div": lambda a, b, c: a / b,
    "max": lambda a, b, c: max(a, b), "min": lambda a, b, c: min(a, b),
    "pow": lambda a, b, c: a**b if a > 0 else math.nan,
    "lt": lambda a, b, c: float(a < b), "le": lambda a, b, c: float(a <= b), "eq": lambda a, b, c: float(a == b),
    "ne": lambda a, b, c: float(a != b), "where": lambda a, b, c: b if a != 0 else c,
    "addc": lambda a, b, c: a + 0.75, "mulc": lambda a, b, c: a * 0.75,
    "clamp": lambda a, b, c: min(max(a, 0.75), 1.25),
    "const": lambda a, b, c: 0.75,
    "trunc": lambda a, b, c: math.trunc(a), "fmod": lambda a, b, c: math.fmod(a, b),
    "remainder": lambda a, b, c: a % b, "floor_divide": lambda a, b, c: a // b,
    "bitand": lambda a, b, c: int(a) & int(b), "bitor": lambda a, b, c: int(a) | int(b),
    "bitxor": lambda a, b, c: int(a) ^ int(b),
    "mulmod": lambda a, b, c: (int(a) * int(b) + int(c)) % 9973,
}  # fmt: skip
INTEGERS = {"bitand", "bitor", "bitxor", "mulmod"}
GROUPED = {"sum": math.fsum, "amax": max, "amin": min}


def test_the_table_of_meanings_is_complete():
    assert MEANING.keys() | GROUPED.keys() | {"load", "store"} == OPCODES.keys()


@pytest.mark.parametrize("name", sorted(OPCODES.keys() - {"load", "store"}))
def test_operation(name):
    lanes = 12
    rows = torch.randn(3, lanes) * 2
    rows[1, ::4] = rows[0, ::4]
    if name == "where":
        rows[0, 1::2] = 0
    if name in INTEGERS:
        rows = torch.randint(-(2**24), 2**24 + 1, (3, lanes)).float()
    program = Program(1, UNBOUNDED, lanes, 1, [Buffer(STATE, lanes, 1, 0), Buffer(CONSTANT, lanes, 3, 0)])
    new = Assembler(program)
    new.constant(rows)
    loads = [op("load", 1 + i, new.operand(1, lanes, column=0, offset=i)) for i in range(3)]
    store = op("store", 0, 0, new.operand(0, lanes, column=0))
    operation = op(name, 0, 1, 3 if name in GROUPED else 2, 3, 9973 if name == "mulmod" else 0.75, 1.25)
    new.compute([], [*loads, operation, store], parts=1, lanes=lanes, when=PROLOGUE)
    state = torch.full((1, lanes), torch.nan)
    run = GenerationBatch(state, [], 0, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, 1))
    ReferenceMachine(new.finish(), heads.Bernoulli()).prologue(run)
    if name in GROUPED:
        groups = rows[0].double().reshape(-1, 3).tolist()
        expected = torch.tensor([[GROUPED[name](g)] * 3 for g in groups], dtype=torch.float64).flatten()
    else:
        expected = torch.tensor([MEANING[name](*lane) for lane in rows.double().T.tolist()], dtype=torch.float64)
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(state[0].double(), expected, rtol=4 * eps, atol=4 * eps, equal_nan=True)


def test_programs_use_every_field_of_an_operand():
    """The hand-made programs would not notice a machine that ignores a field that none of them sets."""
    operands = [o for build in CASES.values() for o in build().program.operands]
    for name in columns_of(Operand):
        if name not in ("buffer", "channel_stride", "box.frame1"):
            assert len(set(map(attrgetter(name), operands))) > 1, name
