"""Step programs written by hand, and the networks they stand for in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.generate import heads
from fastgen.generate.ir.instructions import (
    CONTEXT,
    DENSE,
    INDEX,
    PIXEL,
    PROLOGUE,
    ROW,
    STATE,
    UNBOUNDED,
    AccessMap,
    Box,
    Buffer,
    Compute,
    Draw,
    Instruction,
    IterationDomain,
    Operand,
    Operation,
    Segment,
    Weight,
)
from fastgen.generate.ir.opcodes import OPCODE
from fastgen.generate.ir.program import Program


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

    def operand(
        self,
        buffer: int,
        length: int,
        row: int = 0,
        column: int = 1,
        offset: int = 0,
        channel: int = 0,
        channel_stride: int = 1,
        border: int = -1,
        frame: int = 0,
        **box: int,
    ) -> int:
        """A new operand: the strides and the offset of its access map, and the ends of its box."""
        access = AccessMap(row, column, offset, frame)
        self.program.operands.append(Operand(buffer, channel, channel_stride, length, access, Box(**box), border))
        return len(self.program.operands) - 1

    def weight(self, matrix: Tensor) -> int:
        offset = sum(w.numel() for w in self.weights)
        self.weights.append(matrix.flatten())
        self.program.weight_table.append(Weight(offset, *matrix.shape))
        return len(self.program.weight_table) - 1

    def constant(self, values: Tensor) -> int:
        self.constants.append(values.flatten())
        return sum(c.numel() for c in self.constants) - values.numel()

    def compute(
        self,
        segments: list[Segment],
        operations: list[Operation],
        parts: int,
        lanes: int,
        weight: int = -1,
        bias: int = -1,
        accumulator: int = -1,
        registers: int = 4,
        block: int = 1,
        when: int = PIXEL,
        level: int = 0,
        loop: int = 0,
        **domain: int,
    ) -> None:
        program = self.program
        program.segments += segments
        program.operations += operations
        body = Compute(
            segment0=len(program.segments) - len(segments),
            segment1=len(program.segments),
            weight=weight,
            bias=bias,
            accumulator=accumulator,
            parts=parts,
            lanes=lanes,
            operation0=len(program.operations) - len(operations),
            operation1=len(program.operations),
            registers=registers,
            block=block,
        )
        program.instructions.append(Instruction(when, level, loop, self._domain(domain), body))

    def draw(
        self,
        first: int,
        last: int,
        row: int = 0,
        column: int = 1,
        offset: int = 0,
        channels: int = 1,
        frame: int = 0,
        **domain: int,
    ) -> None:
        """Operands ``first .. last`` are the parameters, the next ``channels`` of them the inputs."""
        body = Draw(first, last, AccessMap(row, column, offset, frame), 0, channels, last, last + channels)
        self.program.instructions.append(Instruction(PIXEL, 0, 0, self._domain(domain), body))

    def _domain(self, changes: dict[str, int]) -> IterationDomain:
        ends = {"row0": 0, "row1": 1, "column0": 0, "column1": self.program.steps}
        return IterationDomain(**{"row_stride": 1, "column_stride": 1, "delay": 0} | ends | changes)

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
    inputs = [new.operand(x, 1, offset=-1 - i, column0=1 + i) for i in range(2)]
    new.compute(
        [Segment(o, INDEX, i * levels, levels) for i, o in enumerate(inputs)],
        [op("tanh", 0, 0), op("sigmoid", 1, 1), op("mul", 2, 0, 1), op("store", 0, 2, new.operand(h, hidden))],
        parts=2, lanes=hidden, weight=new.weight(token),
    )  # fmt: skip
    now = new.operand(h, hidden)
    past = new.operand(h, hidden, offset=-2, column0=2, border=new.constant(border))
    new.compute(
        [Segment(now, DENSE, 0, hidden), Segment(past, DENSE, hidden, hidden)],
        [op("relu", 0, 0), op("load", 1, now), op("add", 0, 0, 1), op("store", 0, 0, new.operand(g, hidden))],
        parts=1, lanes=hidden, weight=new.weight(dilated), bias=new.constant(dilated_bias), level=1,
    )  # fmt: skip
    new.compute(
        [Segment(new.operand(g, hidden), DENSE, 0, hidden)],
        [op("store", 0, 0, new.operand(logits, levels))],
        parts=1, lanes=levels, weight=new.weight(last), bias=new.constant(last_bias), level=2,
    )  # fmt: skip
    read, write = new.operand(logits, levels), new.operand(x, 1)
    new.draw(read, write)

    def parameters(tokens: Tensor, dtype: torch.dtype) -> Tensor:
        padded = F.pad(tokens, (2, 0))
        table, layer = token.to(dtype), dilated.to(dtype)
        filtered, gate = (table[padded[:, 1:-1]] + table[levels + padded[:, :-2]]).split(hidden, -1)
        hiddens = torch.tanh(filtered) * torch.sigmoid(gate)
        before = torch.cat([border.to(dtype).expand(len(tokens), 2, -1), hiddens[:, :-2]], 1)
        mixed = F.relu(hiddens @ layer[:hidden] + before @ layer[hidden:] + dilated_bias.to(dtype)) + hiddens
        return (mixed @ last.to(dtype) + last_bias.to(dtype))[:, :, None]

    return Case(new.finish(), head, (steps,), [], parameters)


def image(head: heads.Head, channels: int, damping: float = 1.0) -> Case:
    """Pixels: a stack that reads the row above, a strided cell, both taken up by the pixels, and a context's bias.

    The parameters of pixel (i, j) are a function of row i - 1 (columns j - 1 .. j + 1), of pixel (i, j - 1), and of the
    coarse cell (i // 2, j // 2), which sees the pixel left of its first. All weights of the parameters are divided by
    ``damping``, without which continuous values grow from pixel to pixel.
    """
    size, width = 4, 3
    head = head.resolve((channels, size, size))
    groups = head.groups((channels, size, size))
    count = groups * head.parameters_per_group
    above, coarse = torch.randn(3 * channels, width) / 4, torch.randn(channels, width) / 4
    output, global_map = torch.randn(2 * width + channels, count) / 4 / damping, torch.randn(2, count) / 4
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
    new.compute(
        [Segment(new.operand(given, 2, column=0), DENSE, 0, 2)],
        [op("store", 0, 0, new.operand(shift, count, column=0))],
        parts=1, lanes=count, weight=new.weight(global_map), when=PROLOGUE, column1=1,
    )  # fmt: skip
    taps = [
        new.operand(x, channels, row=4, offset=-4 + d, row0=1, column0=max(0, -d), column1=size - max(0, d))
        for d in (-1, 0, 1)
    ]
    new.compute(
        [Segment(tap, DENSE, i * channels, channels) for i, tap in enumerate(taps)],
        [op("store", 0, 0, new.operand(v, width, row=4))],
        parts=1, lanes=width, weight=new.weight(above), when=ROW, row1=size, column1=size,
    )  # fmt: skip
    new.compute(
        [Segment(new.operand(x, channels, row=8, column=2, offset=-1, column0=1), DENSE, 0, channels)],
        [op("tanh", 0, 0), op("store", 0, 0, new.operand(s, width, row=2))],
        parts=1, lanes=width, weight=new.weight(coarse), row_stride=2, column_stride=2, row1=2, column1=2,
    )  # fmt: skip
    matrix = new.weight(output)
    for delay in (0, 1, size, size + 1):
        left = new.operand(x, channels, row=8, column=2, offset=delay - 1, column0=0 if delay % size else 1)
        fine = {"row": 8, "column": 2, "offset": delay}
        new.compute(
            [
                Segment(new.operand(v, width, **fine), DENSE, 0, width),
                Segment(left, DENSE, width, channels),
                Segment(new.operand(s, width, row=2), DENSE, width + channels, width),
            ],
            [op("store", 0, 0, new.operand(out, count, **fine))],
            parts=1, lanes=count, weight=matrix, accumulator=new.operand(shift, count, column=0),
            row_stride=2, column_stride=2, delay=delay, row1=2, column1=2, level=1,
        )  # fmt: skip
    first = len(program.operands)
    half = count // 2
    new.operand(out, half, row=4)
    new.operand(out, count - half, row=4, channel=half)
    for channel in range(channels):
        new.operand(x, 1, row=4, channel=channel)
    new.draw(first, first + 2, row=4, channels=channels, row1=size, column1=size)

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


def video() -> Case:
    """Three frames: the parameters of a pixel are a function of the pixels left of it and above it, of the frame
    before, which is encoded as a whole when it is finished, and of every second frame, encoded likewise a frame later.
    """
    (frames, height, width), hidden, slow = (3, 2, 3), 4, 2
    head, size = heads.Bernoulli("symmetric"), height * width
    encoder, coarse = torch.randn(2, hidden), torch.randn(1, slow)
    output = torch.randn(hidden + slow + 2, 1)
    program = Program(frames * size, width, state_size=36 + size * (hidden + slow), lookahead=1)
    x, e, s, out = range(4)
    program.buffers = [
        Buffer(STATE, 1, 18, 0),
        Buffer(STATE, hidden, size, 18),
        Buffer(STATE, slow, size, 18 + size * hidden),
        Buffer(STATE, 1, 18, 18 + size * (hidden + slow)),
    ]
    new = Assembler(program)
    here = {"row": width, "frame": size}
    grid = {"row1": height, "column1": width, "frame1": frames, "frame_stride": height}
    whole = grid | {"when": ROW, "row_stride": 0}
    below = new.operand(x, 1, offset=width, row1=height - 1, **here)
    new.compute(
        [Segment(new.operand(x, 1, **here), DENSE, 0, 1), Segment(below, DENSE, 1, 1)],
        [op("tanh", 0, 0), op("store", 0, 0, new.operand(e, hidden, **here))],
        parts=1, lanes=hidden, weight=new.weight(encoder), **whole | {"delay": height, "frame1": frames - 1},
    )  # fmt: skip
    new.compute(
        [Segment(new.operand(x, 1, row=width, frame=2 * size), DENSE, 0, 1)],
        [op("store", 0, 0, new.operand(s, slow, **here))],
        parts=1, lanes=slow, weight=new.weight(coarse),
        **whole | {"delay": 2 * height, "frame1": 1, "frame_stride": 2 * height},
    )  # fmt: skip
    taps = [
        (new.operand(e, hidden, offset=-size, frame0=1, **here), hidden),
        (new.operand(s, slow, row=width, frame0=2), slow),
        (new.operand(x, 1, offset=-1, column0=1, **here), 1),
        (new.operand(x, 1, offset=-width, row0=1, **here), 1),
    ]
    starts = [sum(n for _, n in taps[:i]) for i in range(4)]
    new.compute(
        [Segment(tap, DENSE, start, n) for start, (tap, n) in zip(starts, taps, strict=True)],
        [op("store", 0, 0, new.operand(out, 1, **here))],
        parts=1, lanes=1, weight=new.weight(output), **grid,
    )  # fmt: skip
    first = len(program.operands)
    new.operand(out, 1, **here)
    new.operand(x, 1, **here)
    new.draw(first, first + 1, **here, **grid)

    def parameters(levels: Tensor, dtype: torch.dtype) -> Tensor:
        pixels = head.to_input(levels).to(dtype)[:, 0, ..., None]
        under = F.pad(pixels, (0, 0, 0, 0, 0, 1))[:, :, 1:]
        encoded = torch.tanh(torch.cat([pixels, under], -1) @ encoder.to(dtype))
        before = F.pad(encoded, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1]
        first = F.pad(pixels[:, :1] @ coarse.to(dtype), (0, 0, 0, 0, 0, 0, 2, 0))
        left, above = F.pad(pixels, (0, 0, 1, 0))[:, :, :, :-1], F.pad(pixels, (0, 0, 0, 0, 1, 0))[:, :, :-1]
        result = torch.cat([before, first, left, above], -1) @ output.to(dtype)
        return result.flatten(1, 3).unflatten(-1, (1, 1))

    return Case(new.finish(), head, (1, frames, height, width), [], parameters)


CASES = {
    "sequence": sequence,
    "video": video,
    "bernoulli": lambda: image(heads.Bernoulli("unit"), 2),
    "categorical": lambda: image(heads.Categorical(4, "symmetric"), 3),
    "logistic-mixture": lambda: image(heads.DiscretizedLogisticMixture(2, 9), 3),
    "raw-logistic-mixture": lambda: image(heads.DiscretizedLogisticMixture(2, 9, feed_raw=True), 3),
    "gaussian": lambda: image(heads.Gaussian(2), 1),
    "logistic": lambda: image(heads.LogisticMixture(2), 2, 32.0),
    "bivariate": lambda: image(heads.BivariateGaussianMixture(2), 4, 32.0),
    "composite": lambda: image(
        heads.Composite(heads.BivariateGaussianMixture(2), heads.Bernoulli("symmetric")), 3, 32.0
    ),
}
