"""The step program: what compiling hands to a machine.

A program is data. It says which *instructions* run when, where their operands lie, and how the step's elements are
drawn. The terms are those of polyhedral compilers; ``instructions.py`` has the records, and ``csrc/program`` the same
records under the same names.

Iteration domain and schedule
    Generation takes ``steps`` steps; step t has the row ``t // row_length`` and the column ``t % row_length``
    (sequences have one endless row; the rows of a video's frames follow one another). An instruction runs at the cells
    (frame, row, column) of its *iteration domain*, ``frame0 <= frame < frame1``, ``row0 <= row < row1`` and
    ``column0 <= column < column1``: the frames, rows and columns of what it computes, which may be coarser than those
    of the steps. All but videos have the one frame 0. Its *schedule* is affine, and ``when`` says in which phase it
    runs:

    - ``PROLOGUE``: all cells, once, before the first step;
    - ``ROW``: at the start of row R the cells with ``R == frame_stride * frame + row_stride * row + delay``, all
      columns at once; where ``row_stride`` is 0, all rows of a frame at once;
    - ``PIXEL``: at step t the cells with ``t == row_length * (frame_stride * frame + row_stride * row) +
      column_stride * column + delay`` (for sequences the rows are [0, 1) and their term is absent). More than one cell
      may answer to a step; they run in the order of the frames and the rows. A Compute of a sequence may run a
      ``block`` of its cells at once: those from column on at the step of cell column, where column - column0 is a
      multiple of ``block``.

    Within one row start, and within one step, instructions run in the order of the list; ``level`` is their depth in
    the dependencies of that phase: instructions of one level never depend on each other at one step.

    Several steps may run at once, each instruction over all of them, but for a *loop*: instructions that lie side by
    side, of one number ``loop`` that is not 0, and that read what one of them computed at an earlier step. These run
    one step after the other.

Operands and access maps
    Every buffer holds positions x channels, a position's channels contiguous. An operand's *access map* gives for a
    cell the position ``frame_stride * frame + row_stride * row + column_stride * column + offset`` of its buffer, and
    there it takes ``length`` channels ``channel + i * channel_stride`` (stride 0 broadcasts one value). Outside its
    ``box`` of cells it reads ``border`` (an offset of ``length`` values in ``constants``), or zeros where ``border`` is
    -1. A ring buffer keeps position p in slot ``p % positions``.

Instructions
    All kinds share a header (when, level, domain) and have a body of their own.

    ``Compute``:

    1. gather-multiply: the outputs are ``parts * lanes`` sums
       ``start[o] + sum_segments sum_k x[k] * W[segment.row + k, o]``, where start is the accumulator operand's value,
       or the bias (an offset in ``constants``), or 0. A dense segment reads ``length`` values x; an index segment
       reads one value v and adds ``W[segment.row + v]``. ``weight == -1`` and no segments: the sums are their start.
       Output ``part * lanes + lane`` becomes lane ``lane`` of register ``part``.
    2. a lane program: registers are vectors of ``lanes`` float32, operations apply to every lane (see ``opcodes.py``).

    ``Attend``, whose cells are in frame 0: for every head h and every key s of the cell's key set, in their order,

    1. the product ``sum_d query[h, d] * key[s, group(h), d]``, of which a lane program over the keys makes a score;
    2. the weights: the softmax of the scores over the keys, or the scores themselves; altered by another lane program;
    3. the output ``out[h, c] = sum_s weight[s] * value[s, group(h), c]``; 0 where no key is seen.

    ``Draw``: reads the head's parameters (its operands, concatenated), draws ``channels`` elements of the event at the
    natural position that its access map gives, channel ``channel0`` on, and writes their input values. Draws are PIXEL
    instructions of level 0 and run after every Compute of their step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from fastgen.generate.ir.instructions import (
    BODIES,
    Attend,
    Buffer,
    Compute,
    Draw,
    Header,
    Instruction,
    KeyRun,
    KeySet,
    Operand,
    Operation,
    ScoreOperand,
    Segment,
    Weight,
    columns_of,
    from_rows,
    to_rows,
)
from fastgen.generate.ir.program_text import ProgramText

STREAM = 1 << 36
"""Steps of a program that has no end."""

_RECORDS = {
    "buffers": Buffer,
    "operands": Operand,
    "segments": Segment,
    "weight_table": Weight,
    "operations": Operation,
    "key_sets": KeySet,
    "key_runs": KeyRun,
    "score_operands": ScoreOperand,
    "instructions": Header,
    **BODIES,
}


@dataclass
class Program:
    steps: int
    row_length: int
    state_size: int
    lookahead: int
    """How many consecutive steps of one row may run instruction by instruction, each over all of them, before a ring
    overflows."""
    buffers: list[Buffer] = field(default_factory=list)
    operands: list[Operand] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    weight_table: list[Weight] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    key_sets: list[KeySet] = field(default_factory=list)
    key_runs: list[KeyRun] = field(default_factory=list)
    score_operands: list[ScoreOperand] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    weights: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float32))
    constants: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float32))

    def __str__(self) -> str:
        """Returns the program for people to read, always in the same words; ``program_text`` explains them."""
        text = ProgramText(self)
        steps = "no end" if self.steps >= STREAM // 2 else f"{self.steps} steps"
        rows = "one row" if self.row_length >= self.steps else f"rows of {self.row_length}"
        title = (
            f"program: {steps}, {rows}, {self.state_size} numbers of state, lookahead {self.lookahead}, "
            f"{len(self.weights)} weights, {len(self.constants)} constants"
        )
        buffers = [f"  {text.buffer(n)}" for n in range(len(self.buffers))]
        instructions = [f"  {text.instruction(n, i)}" for n, i in enumerate(self.instructions)]
        return "\n".join([title, "buffers", *buffers, "instructions", *instructions])

    @property
    def computes(self) -> list[Instruction]:
        """The instructions whose body is a Compute."""
        return [i for i in self.instructions if isinstance(i.body, Compute)]

    @property
    def attends(self) -> list[Instruction]:
        """The instructions whose body is an Attend."""
        return [i for i in self.instructions if isinstance(i.body, Attend)]

    @property
    def draws(self) -> list[Instruction]:
        """The instructions whose body is a Draw."""
        return [i for i in self.instructions if isinstance(i.body, Draw)]

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """One int64 table per kind of record, the operations' numbers, and the two float arenas.

        An instruction is a row of ``instructions`` and the next row of the table of its kind (``BODIES``).
        """
        kinds = {body: kind for kind, body in enumerate(BODIES.values())}
        rows = {name: getattr(self, name) for name in _RECORDS if name not in BODIES}
        headers = [Header(kinds[type(i.body)], i.when, i.level, i.loop, i.domain) for i in self.instructions]
        rows["instructions"] = headers
        for name, body in BODIES.items():
            rows[name] = [i.body for i in self.instructions if type(i.body) is body]
        tables = {
            name: torch.tensor(to_rows(rows[name], record), dtype=torch.int64).reshape(-1, len(columns_of(record)))
            for name, record in _RECORDS.items()
        }
        tables["operation_numbers"] = torch.tensor([[o.x, o.y] for o in self.operations], dtype=torch.float64).reshape(
            -1, 2
        )
        tables["header"] = torch.tensor([self.steps, self.row_length, self.state_size, self.lookahead])
        return tables | {"weights": self.weights, "constants": self.constants}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> Program:
        """Returns the program of ``to_tensors``; ``check_program`` says whether its numbers make sense.

        Raises:
            ValueError: a tensor is missing, not known, or of another shape or dtype; the kinds of the instructions do
                not go with the tables of their bodies.
        """
        _check_tensors(tensors)
        rows = {name: tensors[name].tolist() for name in _RECORDS}
        rows["operations"] = [
            r + n for r, n in zip(rows["operations"], tensors["operation_numbers"].tolist(), strict=True)
        ]
        records = {name: from_rows(rows[name], record) for name, record in _RECORDS.items()}
        bodies: list[Iterator] = [iter(records.pop(name)) for name in BODIES]
        headers: list[Header] = records.pop("instructions")
        program = cls(*tensors["header"].tolist(), **records)
        program.instructions = [Instruction(h.when, h.level, h.loop, h.domain, next(bodies[h.kind])) for h in headers]
        program.weights, program.constants = tensors["weights"], tensors["constants"]
        return program

    def columns(self) -> dict[str, dict[str, np.ndarray]]:
        """Returns the fields of every kind of record, each as one array; for bodies those of their headers, too.

        ``number`` of a body is its place in the list of instructions.
        """
        tables = self.tables()
        columns = {n: dict(zip(columns_of(r), tables[n].T, strict=True)) for n, r in _RECORDS.items()}
        columns["operations"] |= dict(zip("xy", tables["operation_numbers"].T, strict=True))
        for kind, name in enumerate(BODIES):
            number = np.flatnonzero(columns["instructions"]["kind"] == kind)
            header = {field: values[number] for field, values in columns["instructions"].items()}
            columns[name] |= header | {"number": number}
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


def _check_tensors(tensors: dict[str, torch.Tensor]) -> None:
    shapes = {name: (torch.int64, (-1, len(columns_of(record)))) for name, record in _RECORDS.items()} | {
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
    kinds = tensors["instructions"][:, 0]
    odd = (kinds < 0) | (kinds >= len(BODIES))
    if odd.any():
        at = int(odd.nonzero()[0])
        raise ValueError(f"instructions[{at}]: kind must be in 0 .. {len(BODIES) - 1}, got {int(kinds[at])}")
    for kind, name in enumerate(BODIES):
        if len(tensors[name]) != (count := int((kinds == kind).sum())):
            raise ValueError(f"{name} must have a row for each of {count} instructions, got {len(tensors[name])}")
