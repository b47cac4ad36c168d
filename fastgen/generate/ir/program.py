"""The step program: what the analysis hands to a machine.

A program is data. It says which *codes* run when, where their operands lie, and how the step's elements are drawn.

Lattice and time
    Generation takes ``steps`` steps; step t has the row ``t // row_length`` and the column ``t % row_length``
    (sequences have one endless row). A code computes a *lattice* of cells (q, w), ``q0 <= q < q1`` and
    ``w0 <= w < w1``; ``kind`` says when:

    - ``PROLOGUE``: all cells, once, before the first step;
    - ``ROW``: at the start of row R the cells with ``R == row_stride * q + delay``, all w at once;
    - ``PIXEL``: at step t the cells with ``t == row_length * row_stride * q + column_stride * w + delay`` (for
      sequences the q range is [0, 1) and the q term is absent). More than one cell may answer to a step; they run in
      the order of q. A code of a sequence may run ``together`` of its cells at once: those from w on at the step of
      cell w, where w - w0 is a multiple of ``together``.

    Within one row start, and within one step, codes run in the order of the list; ``level`` is their depth in the
    dependencies of that phase: codes of one level never depend on each other.

Operands
    Every buffer holds positions x channels, a position's channels contiguous. An operand addresses, for a cell (q, w),
    position ``p = a*q + b*w + c`` of its buffer and there ``length`` channels ``channel + i * channel_stride`` (stride
    0 broadcasts one value). Outside the box ``box_q0 <= q < box_q1 and box_w0 <= w < box_w1`` it reads ``border`` (an
    offset of ``length`` values in ``constants``), or zeros where ``border`` is -1. A ring buffer keeps position p in
    slot ``p % positions``.

A code
    1. gather-multiply: the outputs are ``parts * lanes`` sums
       ``start[o] + sum_segments sum_k x[k] * W[segment.row + k, o]``, where start is the accumulator operand's value,
       or the bias (an offset in ``constants``), or 0. A dense segment reads ``length`` values x; an index segment
       reads one value v and adds ``W[segment.row + v]``. ``weight == -1`` and no segments: the sums are their start.
       Output ``part * lanes + lane`` becomes lane ``lane`` of register ``part``.
    2. a lane program: registers are vectors of ``lanes`` float32, operations apply to every lane (see ``OPCODES``).

A draw
    At its cells it reads the head's parameters (its operands, concatenated), draws ``channels`` elements of the event
    at natural position ``a*q + b*w + c`` (from ``position``), channel ``channel0`` on, and writes their input values.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields

import numpy as np
import torch

PROLOGUE, ROW, PIXEL = 0, 1, 2
STATE, CONSTANT, CONTEXT = 0, 1, 2
DENSE, INDEX = 0, 1
UNBOUNDED = 1 << 40
STREAM = 1 << 36
"""Steps of a program that has no end."""

# name -> (number of register arguments, meaning); `dst`, `a`, `b`, `c` are registers unless said otherwise
OPCODES = {
    "load": "dst = operand a",
    "store": "operand b = a",
    "const": "dst = x",
    "neg": "-a", "abs": "|a|", "exp": "exp a", "log": "log a", "log1p": "log(1 + a)", "expm1": "exp(a) - 1",
    "sqrt": "sqrt a", "rsqrt": "1 / sqrt a", "reciprocal": "1 / a", "tanh": "tanh a", "sigmoid": "1 / (1 + exp -a)",
    "erf": "erf a", "sin": "sin a", "cos": "cos a", "floor": "floor a", "ceil": "ceil a", "round": "a to nearest even",
    "sign": "sign a", "relu": "max(a, 0)", "elu": "a > 0 ? a : x * expm1(a)", "leaky_relu": "a > 0 ? a : x * a",
    "softplus": "a * x > y ? a : log1p(exp(a * x)) / x",
    "gelu": "a/2 (1 + erf(a / sqrt 2))",
    "add": "a + b", "sub": "a - b", "mul": "a * b", "div": "a / b", "max": "max(a, b)", "min": "min(a, b)",
    "pow": "a ** b", "lt": "a < b", "le": "a <= b", "eq": "a == b", "ne": "a != b",
    "where": "a != 0 ? b : c",
    "addc": "a + x", "mulc": "a * x", "clamp": "min(max(a, x), y)",
    "sum": "sum of a over groups of `b` neighbouring lanes (b is a number, it divides lanes), broadcast back",
    "amax": "maximum likewise", "amin": "minimum likewise",
    "trunc": "a towards zero",
    "fmod": "a - b * trunc(a / b), exactly", "remainder": "fmod(a, b), plus b where its sign is not that of b",
    "floor_divide": "the floor of a / b, by the exact remainder (torch.floor_divide)",
    "bitand": "a & b of integers", "bitor": "a | b", "bitxor": "a ^ b",
    "mulmod": "(a * b + c) modulo x of integers, exactly",
}  # fmt: skip
OPCODE = {name: number for number, name in enumerate(OPCODES)}


def register_arguments(name: str) -> int:
    """How many registers an operation reads: the first so many of a, b, c."""
    if name in ("load", "const"):
        return 0
    if name in ("where", "mulmod"):
        return 3
    binary = OPCODE["add"] <= OPCODE[name] <= OPCODE["ne"] or OPCODE["fmod"] <= OPCODE[name] <= OPCODE["bitxor"]
    return 2 if binary else 1


@dataclass
class Buffer:
    """``positions`` slots of ``channels`` float32.

    ``offset``: in the sample's state, in ``constants``, or the context's number. A CONTEXT buffer has as many positions
    as the context tensor has; ``positions`` is then 0.
    """

    where: int
    channels: int
    positions: int
    offset: int


@dataclass
class Operand:
    buffer: int
    channel: int
    channel_stride: int
    length: int
    a: int
    b: int
    c: int
    box_q0: int = 0
    box_q1: int = UNBOUNDED
    box_w0: int = 0
    box_w1: int = UNBOUNDED
    border: int = -1


@dataclass
class Segment:
    """A run of the inputs of a gather-multiply; ``row`` is its first row in the weight matrix."""

    operand: int
    kind: int
    row: int
    length: int


@dataclass
class Weight:
    """A row-major ``[rows, columns]`` matrix at ``offset`` in ``weights``."""

    offset: int
    rows: int
    columns: int


@dataclass
class Operation:
    opcode: int
    dst: int
    a: int = 0
    b: int = 0
    c: int = 0
    x: float = 0.0
    y: float = 0.0


@dataclass
class Code:
    kind: int
    level: int
    row_stride: int
    column_stride: int
    delay: int
    q0: int
    q1: int
    w0: int
    w1: int
    segment0: int
    segment1: int
    weight: int
    bias: int
    accumulator: int
    parts: int
    lanes: int
    operation0: int
    operation1: int
    registers: int
    together: int = 1


@dataclass
class Draw:
    """Draws at PIXEL cells, after every code of the step.

    The parameters are the concatenated values of operands ``parameter0 .. parameter1``: ``channels`` groups of equal
    size for a head that draws channels independently, one group for a head that couples them. ``a, b, c`` give the
    natural position; ``input0 .. input1`` are the operands that receive the input value of channel ``channel0``,
    ``channel0 + 1``, ... (one operand of length 1 each).
    """

    row_stride: int
    column_stride: int
    delay: int
    q0: int
    q1: int
    w0: int
    w1: int
    parameter0: int
    parameter1: int
    a: int
    b: int
    c: int
    channel0: int
    channels: int
    input0: int
    input1: int


@dataclass
class Program:
    steps: int
    row_length: int
    state_size: int
    lookahead: int
    """How many consecutive steps (of one row) may run code by code, each over all of them, before a ring overflows."""
    buffers: list[Buffer] = field(default_factory=list)
    operands: list[Operand] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    weight_table: list[Weight] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    codes: list[Code] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)
    weights: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float32))
    constants: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float32))

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """One int64 table per kind of record, the operations' numbers, and the two float arenas."""
        tables = {name: _table(getattr(self, name), record) for name, record in _RECORDS.items()}
        tables["operation_numbers"] = torch.tensor([[o.x, o.y] for o in self.operations], dtype=torch.float64).reshape(
            -1, 2
        )
        tables["header"] = torch.tensor([self.steps, self.row_length, self.state_size, self.lookahead])
        return tables | {"weights": self.weights, "constants": self.constants}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> Program:
        """The program of ``to_tensors``; ``verify`` says whether its numbers make sense.

        Raises:
            ValueError: a tensor is missing, not known, or of another shape or dtype.
        """
        widths = {name: len(_integers(record)) for name, record in _RECORDS.items()}
        shapes = {name: (torch.int64, (-1, width)) for name, width in widths.items()} | {
            "operation_numbers": (torch.float64, (-1, 2)),
            "header": (torch.int64, (4,)),
            "weights": (torch.float32, (-1,)),
            "constants": (torch.float32, (-1,)),
        }
        if tensors.keys() != shapes.keys():
            odd = ", ".join(sorted(tensors.keys() ^ shapes.keys()))
            raise ValueError(f"a program has the tensors {', '.join(shapes)}; missing or not known: {odd:.200}")
        for name, (dtype, shape) in shapes.items():
            given = tensors[name]
            fits = given.dim() == len(shape) and all(n in (-1, m) for n, m in zip(shape, given.shape, strict=True))
            if given.dtype != dtype or not fits:
                wanted = ["n" if n < 0 else n for n in shape]
                raise ValueError(f"{name} must be {dtype} {wanted}, got {given.dtype} {list(given.shape)}")
        if len(tensors["operation_numbers"]) != len(tensors["operations"]):
            raise ValueError(
                f"operation_numbers must have a row for each of {len(tensors['operations'])} operations, got "
                f"{len(tensors['operation_numbers'])}"
            )
        program = cls(*tensors["header"].tolist())
        for name, record in _RECORDS.items():
            rows = tensors[name].tolist()
            if record is Operation:
                rows = [r + n for r, n in zip(rows, tensors["operation_numbers"].tolist(), strict=True)]
            setattr(program, name, [record(*r) for r in rows])
        program.weights, program.constants = tensors["weights"], tensors["constants"]
        return program

    def columns(self) -> dict[str, dict[str, np.ndarray]]:
        """The fields of every kind of record, each as one array."""
        tables = self.tables()
        columns = {n: dict(zip(_integers(r), tables[n].T, strict=True)) for n, r in _RECORDS.items()}
        columns["operations"] |= dict(zip("xy", tables["operation_numbers"].T, strict=True))
        return columns

    @property
    def fingerprint(self) -> str:
        """Tells programs apart, whatever their parameters: a state goes with one program."""
        digest = hashlib.sha256()
        for name, table in sorted(self.tables().items()):
            if name not in ("weights", "constants"):
                digest.update(name.encode() + table.tobytes())
        return digest.hexdigest()[:16]

    def tables(self) -> dict[str, np.ndarray]:
        return {name: tensor.numpy() for name, tensor in self.to_tensors().items()}


_RECORDS = {
    "buffers": Buffer,
    "operands": Operand,
    "segments": Segment,
    "weight_table": Weight,
    "operations": Operation,
    "codes": Code,
    "draws": Draw,
}


def _table(records: list, record: type) -> torch.Tensor:
    names = _integers(record)
    return torch.tensor([[getattr(r, n) for n in names] for r in records], dtype=torch.int64).reshape(-1, len(names))


def _integers(record: type) -> list[str]:
    return [f.name for f in fields(record) if f.name not in ("x", "y")]
