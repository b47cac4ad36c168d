"""A training step of FFJORD on 2-d points: the solve, its loss, and the gradients of the field by the adjoint.

All have the same field with the same weights, and one probe; "PyTorch, torchdiffeq" is the public code's pattern, a
module for each layer, the divergence by ``autograd.grad``, ``odeint_adjoint``. With fixed steps it does the same as
fastgen. With adaptive steps all have the same tolerance, but their errors are measured in norms of their own, and so
are the steps that they take; zuko's backward pass takes the steps of its forward pass.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torchdiffeq import odeint_adjoint

from fastgen.nn import ContinuousFlow, MLPField
from fastgen.ops.hutchinson_trace import probe_noise

from ..suite.interleave import Provider, interleave
from ..suite.machine import keep_freed_memory, thread_counts
from ..suite.memory import peak_mebibytes
from ..suite.quick import QUICK, size
from ..suite.report import Bar, Part, publish

pytestmark = [pytest.mark.needs_extension, pytest.mark.filterwarnings("default")]
WIDTHS, BATCH = size(((2, 64, 64, 64, 2), 512), ((2, 8, 2), 6))
STEPS, TOLERANCE = size(10, 2), 1e-5
SOLVERS = {"fixed": {"solver": "rk4", "step_size": 1 / STEPS}, "adaptive": {"rtol": TOLERANCE, "atol": TOLERANCE}}
_CLOSE = {"fixed": 1e-4, "adaptive": 1e-2}
"""Tolerances of single precision, and of an adaptive solver's gradients."""
Estimate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps x and the noise to z and the log-determinant."""


class ConcatSquash(nn.Module):
    """A layer as in the public code."""

    def __init__(self, layer: nn.Linear, gate: nn.Linear, shift: nn.Linear) -> None:
        super().__init__()
        self.layer, self.gate, self.shift = layer, gate, shift

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        t = t.view(1, 1)
        return self.layer(x) * torch.sigmoid(self.gate(t)) + self.shift(t)


class Textbook(nn.Module):
    """The field layer by layer."""

    def __init__(self, field: MLPField) -> None:
        super().__init__()
        layers = zip(field.layers, field.gates, field.shifts, strict=True)
        self.layers = nn.ModuleList(ConcatSquash(*parts) for parts in layers)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        x = self.layers[0](t, x)
        for _, layer in pairwise(self.layers):
            x = layer(t, torch.tanh(x))
        return x


class Divergence(nn.Module):
    """The field with its divergence, by the noise that is set before a solve."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field, self.noise = field, None

    def forward(self, t: Tensor, states: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = states[0].requires_grad_()
            y = self.field(t, x)
            (product,) = torch.autograd.grad(y, x, self.noise, create_graph=True)
            return y, (product * self.noise).sum(1)


def textbook(field: MLPField, what: str) -> Estimate:
    dynamics, times = Divergence(Textbook(field)), torch.tensor([0.0, 1.0])
    fixed = {"method": "rk4", "options": {"step_size": 1 / STEPS}}
    solver = fixed if what == "fixed" else {"method": "dopri5", "rtol": TOLERANCE, "atol": TOLERANCE}

    def run(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        dynamics.noise = noise
        z, log_det = odeint_adjoint(dynamics, (x, x.new_zeros(len(x))), times, **solver)
        return z[1], log_det[1]

    return run


def zuko(field: MLPField, exact: bool = False) -> Estimate:
    """It draws noise of its own."""
    from zuko.transforms import FreeFormJacobianTransform

    f, phi = Textbook(field), tuple(field.parameters())
    transform = FreeFormJacobianTransform(f, 0.0, 1.0, phi, atol=TOLERANCE, rtol=TOLERANCE, exact=exact)
    return lambda x, noise: transform.call_and_ladj(x)


def gradients(estimate: Estimate, field: MLPField, x: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    z, log_det = estimate(x, noise)
    loss = (0.5 * z.square().sum(1) - log_det).mean()
    return torch.autograd.grad(loss, list(field.parameters()))


def check(field: MLPField, x: Tensor, what: str) -> None:
    """Checks values and gradients: fastgen's by the textbook with the same noise, zuko's by the exact trace."""
    noise = probe_noise(x, 1, "rademacher", 0, 0, x.dtype)[0]
    pairs = [(ContinuousFlow(field, **SOLVERS[what]), textbook(field, what))]
    if what == "adaptive" and importlib.util.find_spec("zuko"):
        pairs.append((ContinuousFlow(field, trace="exact", **SOLVERS[what]), zuko(field, exact=True)))
    for layer, theirs in pairs:

        def ours(x: Tensor, noise: Tensor, layer: ContinuousFlow = layer) -> tuple[Tensor, Tensor]:
            return layer(x, seed=0)

        for estimate in (lambda estimate: estimate(x, noise), lambda e: gradients(e, field, x, noise)):
            for one, other in zip(estimate(ours), estimate(theirs), strict=True):
                assert (one - other).abs().max() <= _CLOSE[what] * (1 + other.abs().max())


@pytest.mark.parametrize("what", SOLVERS)
@pytest.mark.benchmark(group="ffjord")
def bench_ffjord(benchmark, what):
    torch.manual_seed(0)
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    field, x = MLPField(WIDTHS, time="concat-squash"), torch.randn(BATCH, 2)
    check(field, x, what)
    layer = ContinuousFlow(field, **SOLVERS[what])
    estimates: dict[str, Estimate] = {"PyTorch, torchdiffeq": textbook(field, what)}
    if what == "adaptive" and importlib.util.find_spec("zuko"):
        estimates["zuko"] = zuko(field)
    estimates["fastgen"] = lambda x, noise: layer(x)

    def job(estimate: Estimate) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: gradients(estimate, field, x, (torch.rand_like(x) - 0.5).sign_())

    calls = {name: job(estimate) for name, estimate in estimates.items()}
    providers = {name: Provider(name, call, 1, threads) for name, call in calls.items()}
    interleave(benchmark, list(providers.values()), size(9, 1))
    steps = f"{STEPS} steps of rk4" if what == "fixed" else f"dopri5, tolerance {TOLERANCE:g}"
    title = f"FFJORD, {'-'.join(map(str, WIDTHS))}, {BATCH:,} points, {steps}, training step"
    part = Part(f"ffjord-{what}", title, "step")
    part.add(list(providers.values()), compared_with=providers["PyTorch, torchdiffeq"])
    for name, call in calls.items():
        part.facts[f"peak memory of {name}, MiB"] = peak_mebibytes(call)
    evaluations = layer.evaluations
    part.facts["evaluations of fastgen, forward and backward"] = f"{evaluations.forward} and {evaluations.backward}"
    if not QUICK:
        ours = providers["fastgen"]
        others = [name for name in providers if name != "fastgen"]
        part.bars = [Bar(f"over {name}", 2, ours.speedup_over(providers[name])) for name in others]
    publish(part, benchmark)
