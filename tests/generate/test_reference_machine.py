"""The reference machine against plain PyTorch, on step programs written by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.generate import heads
from fastgen.generate.noise import Noise
from fastgen.generate.program import (
    CONSTANT,
    CONTEXT,
    DENSE,
    INDEX,
    OPCODE,
    OPCODES,
    PIXEL,
    PROLOGUE,
    ROW,
    STATE,
    UNBOUNDED,
    Buffer,
    Code,
    Draw,
    Operand,
    Operation,
    Program,
    Segment,
    Weight,
)
from fastgen.generate.reference_machine import ReferenceMachine
from fastgen.generate.run import Run

SEED = 11


class Case(NamedTuple):
    program: Program
    head: heads.Head
    event_shape: tuple[int, ...]
    contexts: list[Tensor]
    parameters: Callable[[Tensor, torch.dtype], Tensor]
    """The network, teacher-forced: levels [B, *event_shape] to parameters [B, P, G, n]."""


class Assembler:
    """Appends to the tables of a program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.weights: list[Tensor] = []
        self.constants: list[Tensor] = []

    def operand(self, buffer: int, length: int, a: int = 0, b: int = 1, c: int = 0, **rest) -> int:
        rest = {"channel": 0, "channel_stride": 1} | rest
        self.program.operands.append(Operand(buffer=buffer, length=length, a=a, b=b, c=c, **rest))
        return len(self.program.operands) - 1

    def weight(self, matrix: Tensor) -> int:
        offset = sum(w.numel() for w in self.weights)
        self.weights.append(matrix.flatten())
        self.program.weight_table.append(Weight(offset, *matrix.shape))
        return len(self.program.weight_table) - 1

    def constant(self, values: Tensor) -> int:
        self.constants.append(values.flatten())
        return sum(c.numel() for c in self.constants) - values.numel()

    def code(
        self, segments: list[Segment], operations: list[Operation], parts: int, lanes: int, weight: int = -1, **rest
    ) -> None:
        program = self.program
        program.segments += segments
        program.operations += operations
        defaults = {
            "kind": PIXEL, "level": 0, "row_stride": 1, "column_stride": 1, "delay": 0, "q0": 0, "q1": 1, "w0": 0,
            "w1": program.steps, "bias": -1, "accumulator": -1, "registers": 4,
        }  # fmt: skip
        code = Code(
            **defaults | rest,
            segment0=len(program.segments) - len(segments),
            segment1=len(program.segments),
            weight=weight,
            parts=parts,
            lanes=lanes,
            operation0=len(program.operations) - len(operations),
            operation1=len(program.operations),
        )
        program.codes.append(code)

    def finish(self) -> Program:
        self.program.weights = torch.cat(self.weights) if self.weights else torch.zeros(0)
        self.program.constants = torch.cat(self.constants) if self.constants else torch.zeros(0)
        return self.program


def op(name: str, dst: int = 0, a: int = 0, b: int = 0, c: int = 0, x: float = 0.0, y: float = 0.0) -> Operation:
    return Operation(OPCODE[name], dst, a, b, c, x, y)


def sequence(steps: int = 14) -> Case:
    """Tokens: an embedded gate of the last two, a dilated layer with a residual and a learned border, logits."""
    levels, hidden = 5, 6
    head = heads.Categorical(levels)
    token = torch.randn(2 * levels, 2 * hidden)
    dilated, dilated_bias, border = torch.randn(2 * hidden, hidden), torch.randn(hidden), torch.randn(hidden)
    last, last_bias = torch.randn(hidden, levels), torch.randn(levels)

    program = Program(steps, UNBOUNDED, state_size=2 + 3 * hidden + hidden + steps * levels, lookahead=1)
    x, h, g, logits = range(4)
    program.buffers = [
        Buffer(STATE, 1, 2, 0),
        Buffer(STATE, hidden, 3, 2),
        Buffer(STATE, hidden, 1, 2 + 3 * hidden),
        Buffer(STATE, levels, steps, 2 + 4 * hidden),
    ]
    new = Assembler(program)
    inputs = [new.operand(x, 1, c=-1 - i, box_w0=1 + i) for i in range(2)]
    new.code(
        [Segment(o, INDEX, i * levels, levels) for i, o in enumerate(inputs)],
        [op("tanh", 0, 0), op("sigmoid", 1, 1), op("mul", 2, 0, 1), op("store", 0, 2, new.operand(h, hidden))],
        parts=2, lanes=hidden, weight=new.weight(token),
    )  # fmt: skip
    now = new.operand(h, hidden)
    past = new.operand(h, hidden, c=-2, box_w0=2, border=new.constant(border))
    new.code(
        [Segment(now, DENSE, 0, hidden), Segment(past, DENSE, hidden, hidden)],
        [op("relu", 0, 0), op("load", 1, now), op("add", 0, 0, 1), op("store", 0, 0, new.operand(g, hidden))],
        parts=1, lanes=hidden, weight=new.weight(dilated), bias=new.constant(dilated_bias), level=1,
    )  # fmt: skip
    new.code(
        [Segment(new.operand(g, hidden), DENSE, 0, hidden)],
        [op("store", 0, 0, new.operand(logits, levels))],
        parts=1, lanes=levels, weight=new.weight(last), bias=new.constant(last_bias), level=2,
    )  # fmt: skip
    read, write = new.operand(logits, levels), new.operand(x, 1)
    program.draws = [Draw(1, 1, 0, 0, 1, 0, steps, read, read + 1, 0, 1, 0, 0, 1, write, write + 1)]

    def parameters(tokens: Tensor, dtype: torch.dtype) -> Tensor:
        padded = F.pad(tokens, (2, 0))
        table, layer = token.to(dtype), dilated.to(dtype)
        filtered, gate = (table[padded[:, 1:-1]] + table[levels + padded[:, :-2]]).split(hidden, -1)
        hiddens = torch.tanh(filtered) * torch.sigmoid(gate)
        before = torch.cat([border.to(dtype).expand(len(tokens), 2, -1), hiddens[:, :-2]], 1)
        mixed = F.relu(hiddens @ layer[:hidden] + before @ layer[hidden:] + dilated_bias.to(dtype)) + hiddens
        return (mixed @ last.to(dtype) + last_bias.to(dtype))[:, :, None]

    return Case(new.finish(), head, (steps,), [], parameters)


def image(head: heads.Head, channels: int) -> Case:
    """Pixels: a stack that reads the row above, a strided cell, both taken up by the pixels, and a context's bias.

    The parameters of pixel (i, j) are a function of row i - 1 (columns j - 1 .. j + 1), of pixel (i, j - 1), and of the
    coarse cell (i // 2, j // 2), which sees the pixel left of its first.
    """
    size, width = 4, 3
    head = head.resolve((channels, size, size))
    groups = head.groups((channels, size, size))
    count = groups * head.parameters_per_group
    above, coarse = torch.randn(3 * channels, width) / 4, torch.randn(channels, width) / 4
    output, global_map = torch.randn(2 * width + channels, count) / 4, torch.randn(2, count) / 4
    context = torch.randn(3, 1, 2)

    sizes = [16 * channels, 16 * width, 4 * width, count, 16 * count]
    offsets = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    program = Program(16, size, state_size=offsets[-1], lookahead=1)
    x, v, s, shift, out, given = range(6)
    program.buffers = [
        Buffer(STATE, channels, 16, offsets[0]),
        Buffer(STATE, width, 16, offsets[1]),
        Buffer(STATE, width, 4, offsets[2]),
        Buffer(STATE, count, 1, offsets[3]),
        Buffer(STATE, count, 16, offsets[4]),
        Buffer(CONTEXT, 2, 0, 0),
    ]
    new = Assembler(program)
    new.code(
        [Segment(new.operand(given, 2, b=0), DENSE, 0, 2)],
        [op("store", 0, 0, new.operand(shift, count, b=0))],
        parts=1, lanes=count, weight=new.weight(global_map), kind=PROLOGUE, w1=1,
    )  # fmt: skip
    taps = [
        new.operand(x, channels, a=4, c=-4 + d, box_q0=1, box_w0=max(0, -d), box_w1=size - max(0, d))
        for d in (-1, 0, 1)
    ]
    new.code(
        [Segment(tap, DENSE, i * channels, channels) for i, tap in enumerate(taps)],
        [op("store", 0, 0, new.operand(v, width, a=4))],
        parts=1, lanes=width, weight=new.weight(above), kind=ROW, q1=size, w1=size,
    )  # fmt: skip
    new.code(
        [Segment(new.operand(x, channels, a=8, b=2, c=-1, box_w0=1), DENSE, 0, channels)],
        [op("tanh", 0, 0), op("store", 0, 0, new.operand(s, width, a=2))],
        parts=1, lanes=width, weight=new.weight(coarse), row_stride=2, column_stride=2, q1=2, w1=2,
    )  # fmt: skip
    matrix = new.weight(output)
    for delay in (0, 1, size, size + 1):
        left = new.operand(x, channels, a=8, b=2, c=delay - 1, box_w0=0 if delay % size else 1)
        fine = {"a": 8, "b": 2, "c": delay}
        new.code(
            [
                Segment(new.operand(v, width, **fine), DENSE, 0, width),
                Segment(left, DENSE, width, channels),
                Segment(new.operand(s, width, a=2), DENSE, width + channels, width),
            ],
            [op("store", 0, 0, new.operand(out, count, **fine))],
            parts=1, lanes=count, weight=matrix, accumulator=new.operand(shift, count, b=0),
            row_stride=2, column_stride=2, delay=delay, q1=2, w1=2, level=1,
        )  # fmt: skip
    first = len(program.operands)
    half = count // 2
    new.operand(out, half, a=4)
    new.operand(out, count - half, a=4, channel=half)
    for channel in range(channels):
        new.operand(x, 1, a=4, channel=channel)
    program.draws = [
        Draw(1, 1, 0, 0, size, 0, size, first, first + 2, 4, 1, 0, 0, channels, first + 2, first + 2 + channels)
    ]

    def parameters(levels: Tensor, dtype: torch.dtype) -> Tensor:
        pixels = head.to_input(levels).to(dtype)
        grid = F.pad(pixels, (1, 1, 1, 0)).permute(0, 2, 3, 1)
        vertical = torch.cat([grid[:, :-1, d : d + size] for d in range(3)], -1) @ above.to(dtype)
        left = grid[:, 1:, :size]
        cells = torch.tanh(left[:, ::2, ::2] @ coarse.to(dtype))
        cells = cells.repeat_interleave(2, 1).repeat_interleave(2, 2)
        shifted = context.to(dtype) @ global_map.to(dtype)
        result = torch.cat([vertical, left, cells], -1) @ output.to(dtype) + shifted[:, :, None]
        return result.flatten(1, 2).unflatten(-1, (groups, -1))

    return Case(new.finish(), head, (channels, size, size), [context], parameters)


CASES = {
    "sequence": sequence,
    "bernoulli": lambda: image(heads.Bernoulli("unit"), 2),
    "categorical": lambda: image(heads.Categorical(4, "symmetric"), 3),
    "logistic-mixture": lambda: image(heads.DiscretizedLogisticMixture(2, 9), 3),
    "raw-logistic-mixture": lambda: image(heads.DiscretizedLogisticMixture(2, 9, feed_raw=True), 3),
    "gaussian": lambda: image(heads.Gaussian(2), 1),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def start(case: Case, batch: int = 3, known: Tensor | None = None, levels: Tensor | None = None, **options) -> Run:
    channels = case.event_shape[0] if len(case.event_shape) > 1 else 1
    run = Run(
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


def generate(case: Case, **options) -> Run:
    run = start(case, **options)
    ReferenceMachine(case.program, case.head).advance(run, 0, case.program.steps)
    return run


def event(case: Case, run: Run) -> Tensor:
    levels = run.levels.reshape(-1, *case.event_shape)
    return levels.long() if case.head.levels else levels


def machine_parameters(case: Case, run: Run) -> Tensor:
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


def assert_scores(case: Case, run: Run) -> None:
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


def test_program_survives_its_tensors(case, tmp_path):
    case.program.save(tmp_path / "program.safetensors", {})
    loaded, _ = Program.load(tmp_path / "program.safetensors")
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
    with pytest.raises(ValueError, match="weights is 'float8'; it must be one of float32, bfloat16, int8"):
        ReferenceMachine(case.program, case.head, "float8")
    machine, run = ReferenceMachine(case.program, case.head), start(case)
    with pytest.raises(ValueError, match=r"steps are 0 \.\. 99"):
        machine.advance(run, 0, 99)
    run.known, run.levels = torch.ones(3, 1, 14, dtype=torch.bool), torch.full((3, 1, 14), 5.0)
    with pytest.raises(ValueError, match=r"known level at position 0 is no whole number in 0 \.\. 4"):
        machine.advance(run, 0, 1)
    run = start(case)
    run.state[:, :2] = 5
    with pytest.raises(ValueError, match=r"an index is .* 0 \.\. 4"):
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
}  # fmt: skip
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
    program = Program(1, UNBOUNDED, lanes, 1, [Buffer(STATE, lanes, 1, 0), Buffer(CONSTANT, lanes, 3, 0)])
    new = Assembler(program)
    new.constant(rows)
    loads = [op("load", 1 + i, new.operand(1, lanes, b=0, c=i)) for i in range(3)]
    store = op("store", 0, 0, new.operand(0, lanes, b=0))
    operation = op(name, 0, 1, 3 if name in GROUPED else 2, 3, 0.75, 1.25)
    new.code([], [*loads, operation, store], parts=1, lanes=lanes, kind=PROLOGUE)
    state = torch.full((1, lanes), torch.nan)
    run = Run(state, [], 0, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, 1))
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
    for field in dataclasses.fields(Operand):
        if field.name not in ("buffer", "channel_stride", "box_q1"):
            assert len({getattr(o, field.name) for o in operands}) > 1, field.name
