"""Samplers that several tests share: every case is compiled once a process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

import fastgen
from fastgen.generate.heads import Bernoulli, BivariateGaussianMixture, Composite, Custom, Gaussian, LogisticMixture
from fastgen.generate.ir.domain_cells import pixel_cells
from fastgen.generate.machines.reference import ReferenceMachine
from fastgen.generate.state import State
from tests.generate.head_cases import logistic_draw, logistic_log_prob
from tests.generate.networks import NETWORKS
from tests.generate.public_images import MaskedStack
from tests.generate.seeded import built

MACHINES = ["reference"] if fastgen.extension_error else ["reference", "cpu"]
FAST = MACHINES[-1]


@dataclass(frozen=True)
class Case:
    """A module with all that a sampler of it takes."""

    module: nn.Module
    event_shape: tuple[int, ...]
    head: object
    order: object
    predicts: str = "same"
    adapter: Callable | None = None
    context: object = None

    def sampler(self, **changes) -> fastgen.Sampler:
        options = {
            "event_shape": self.event_shape,
            "head": self.head,
            "order": self.order,
            "predicts": self.predicts,
            "adapter": self.adapter,
            "example_context": None if self.context is None else self.contexts(2),
            "machine": FAST,
            "threads": 1,
        }
        return fastgen.Sampler(self.module, **(options | changes))

    def contexts(self, n: int):
        """Contexts of n samples that differ; the first rows are the same for any n."""
        if self.context is None:
            return None
        example = self.context if isinstance(self.context, dict) else {"": self.context}
        made = {}
        for name, value in example.items():
            rows = [torch.Generator().manual_seed(i) for i in range(n)]
            if value.is_floating_point():
                made[name] = torch.stack([torch.randn(value.shape[1:], generator=g) for g in rows])
            else:
                made[name] = torch.stack([torch.randint(0, 3, value.shape[1:], generator=g) for g in rows])
        return made if isinstance(self.context, dict) else made[""]

    def levels(self, n: int, seed: int = 0) -> Tensor:
        """Random levels ``[n, *event_shape]`` (values, for a continuous head)."""
        generator = torch.Generator().manual_seed(seed)
        shape = (n, *self.event_shape)
        if self.head.levels:
            return torch.randint(0, self.head.levels, shape, generator=generator)
        return self.head.random_levels(shape, generator)


def _zoo(name: str, event_shape: tuple[int, ...] | None = None, **config) -> Callable[[], Case]:
    def make() -> Case:
        module = built(
            lambda: fastgen.create_model(
                name, preset="tiny", **({"event_shape": event_shape} if event_shape else {}), **config
            )
        )
        return Case(module, module.config.event_shape, module.head, module.order, context=module.example_context())

    return make


def _network(name: str) -> Callable[[], Case]:
    return lambda: Case(*NETWORKS[name]())


class Squashed(nn.Module):
    """A network that reads values of any size through a tanh."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(torch.tanh(x))


def _gaussian() -> Case:
    return Case(built(lambda: Squashed(MaskedStack(levels=6))), (1, 9, 7), Gaussian(mixtures=2), "raster")


class Strokes(nn.Module):
    """Pen movements and whether the pen leaves the paper, which is looked up, through dilated convolutions."""

    def __init__(self, parameters: int, width: int = 14) -> None:
        super().__init__()
        self.move, self.lift = nn.Conv1d(2, width, 1), nn.Embedding(2, width)
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 2, dilation=2**i) for i in range(3))
        self.last = nn.Conv1d(width, parameters, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.move(torch.tanh(x[:, :2])) + self.lift(x[:, 2].long()).transpose(1, 2)
        for conv in self.convs:
            h = h + torch.tanh(conv(nn.functional.pad(h, (conv.dilation[0], 0))))
        return self.last(h)


def _strokes() -> Case:
    pen = Composite(BivariateGaussianMixture(3), Bernoulli())
    return Case(built(lambda: Strokes(pen.parameters_per_group)), (3, 40), pen, "time", "next")


def _logistic() -> Case:
    return Case(built(lambda: Squashed(MaskedStack(levels=6))), (1, 7, 6), LogisticMixture(2), "raster")


def _custom() -> Case:
    head = Custom(logistic_draw, logistic_log_prob, parameters_per_position=1, channels=1)
    return Case(built(lambda: Squashed(MaskedStack(levels=1))), (1, 9, 7), head, "raster")


CASES: dict[str, Callable[[], Case]] = {name: _network(name) for name in NETWORKS} | {
    "gaussian": _gaussian,
    "logistic": _logistic,
    "strokes": _strokes,
    "custom": _custom,
    "pixelcnn": _zoo("pixelcnn"),
    "pixelcnn_colour": _zoo("pixelcnn", (3, 6, 5), levels=7, layers=2, channels=6, head_channels=9),
    "gated_pixelcnn": _zoo("gated_pixelcnn", channels=12, head_channels=12, layers=3, classes=3, map=2),
    "gated_pixelcnn_colour": _zoo(
        "gated_pixelcnn", (3, 5, 6), levels=6, layers=3, channels=9, head_channels=9, kernel_size=5, vector=4
    ),
    "pixelcnn_pp": _zoo("pixelcnn_pp", filters=8),
    "pixelcnn_pp_colour": _zoo("pixelcnn_pp", (3, 12, 12), levels=256, filters=6, mixtures=3, classes=3),
    "pixelsnail_colour": _zoo(
        "pixelsnail", (3, 5, 4), levels=9, filters=6, blocks=1, convolutions=1, heads=2, key_channels=4,
        value_channels=6, mixtures=2, classes=3,
    ),
    "wavenet": _zoo("wavenet", (90,), layers_per_cycle=4, residual_channels=12, gate_channels=16, levels=32),
    "wavenet_wide": _zoo(  # its earlier taps are summed for several steps at once
        "wavenet", (70,), cycles=1, layers_per_cycle=4, kernel_size=3, residual_channels=32, gate_channels=40, levels=16
    ),
    "wavenet_mixture": _zoo(
        "wavenet", (60,), output="mixture", mixtures=3, cycles=1, layers_per_cycle=4, gate_channels=20, classes=3,
        frames=3, upsampling=(3, 4),
    ),
    "wavenet_repeated_frames": _zoo(
        "wavenet", (48,), levels=16, cycles=2, layers_per_cycle=2, kernel_size=3, vector=2, frames=2, upsampling=(8,),
        learned_upsampling=False,
    ),
}  # fmt: skip


CONTINUOUS = [name for name in CASES if name in ("gaussian", "logistic", "strokes", "custom")]
"""Cases with values that two ways of rounding may draw a little apart."""


@cache
def case(name: str) -> Case:
    return CASES[name]()


@cache
def _compiled(name: str) -> fastgen.Sampler:
    return case(name).sampler()


@cache
def sampler(name: str, machine: str = FAST) -> fastgen.Sampler:
    """The compiled case on a machine; one analysis for both machines. Do not refresh it."""
    made = _compiled(name)
    if machine != made.machine_name:
        made = copy.copy(made)
        made.run_on(machine, made.compiled)
    return made


def parameters_at(sampler: fastgen.Sampler, state: State) -> Tensor:
    """``[B, n]`` float32: what the head read at the step before ``state.step``, draw by draw as in ``Order.draws``."""
    program, step = sampler.program, state.step - 1
    reader = ReferenceMachine(program, sampler.head)
    read = []
    for draw in program.draws:
        for cell in pixel_cells(draw.domain, step, program.row_length):
            cells = tuple(torch.tensor([place]) for place in cell)
            operands = range(draw.body.parameter0, draw.body.parameter1)
            read.append(torch.cat([reader._read(n, state.run, cells)[:, 0] for n in operands], -1))
    return torch.cat(read, 1)
