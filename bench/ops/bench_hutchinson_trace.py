"""The divergence of a field, estimated by 1, 4 and 16 probes and exact: as a callable and as a field fastgen knows.

Against a loop of ``torch.autograd.grad``, ``torch.func.vmap`` and, for the exact one, ``torch.func.jacrev``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fastgen import _C
from fastgen.nn import ConvNetField, MLPField
from fastgen.ops import hutchinson_trace
from fastgen.reference import hutchinson_trace as reference

from ..suite.interleave import Provider, interleave
from ..suite.machine import keep_freed_memory, thread_counts
from ..suite.quick import QUICK, size
from ..suite.report import Bar, Part, publish

pytestmark = pytest.mark.needs_extension
TIME, CHECKED = 0.3, 4
"""CHECKED samples are compared with float64 before anything is timed."""


@dataclass(frozen=True)
class Case:
    """A field with concat-squash layers, as FFJORD has them.

    ``needed``: how many times faster than the faster other it should be with the most probes.
    """

    make: type[MLPField | ConvNetField]
    sizes: tuple[int, ...]
    plane: tuple[int, ...]
    batch: int
    probes: tuple[int | str, ...]
    rounds: int
    needed: float | None = None


FEW = (size(1, 1), size(4, 2), size(16, 5))
CASES = {
    "2-64-64-64-2": Case(
        MLPField, size((2, 64, 64, 64, 2), (2, 4, 4, 4, 2)), (), size(1024, 6), (*FEW, "exact"), 15, 2.5
    ),
    "64-64-64-64-64": Case(MLPField, size((64,) * 5, (7, 4, 4, 4, 7)), (), size(1024, 6), (*FEW, "exact"), 11, 2.5),
    "784-256-256-784": Case(MLPField, size((784, 256, 256, 784), (9, 5, 5, 9)), (), size(1024, 6), FEW[2:], 9, 1.2),
    "conv-3-64-64-3": Case(
        ConvNetField, size((3, 64, 64, 3), (2, 4, 4, 2)), size((16, 16), (4, 4)), size(32, 5), FEW, 9
    ),
}
RUNS = [(name, probes) for name, case in CASES.items() for probes in case.probes]


class Textbook(nn.Module):
    """The field as in public code, one layer after the other."""

    def __init__(self, field: MLPField | ConvNetField) -> None:
        super().__init__()
        self.field = field

    def forward(self, x: Tensor) -> Tensor:
        field, now = self.field, torch.full((1, 1), TIME, dtype=x.dtype)
        shape = (1, -1, *[1] * (x.dim() - 2))
        for i, layer in enumerate(field.layers):
            gate, shift = torch.sigmoid(field.gates[i](now)), field.shifts[i](now)
            x = layer(x) * gate.view(shape) + shift.view(shape)
            if i + 1 < len(field.layers):
                x = torch.tanh(x)
        return x


Estimate = Callable[[Callable, Tensor, Tensor, bool], tuple[Tensor, Tensor]]


def loop(f: Callable, x: Tensor, noise: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y, total = f(x), torch.zeros(len(x), dtype=x.dtype)
        for v in noise:
            (product,) = torch.autograd.grad(y, x, v, create_graph=training, retain_graph=True)
            total = total + (product * v).flatten(1).sum(1)
    return y, total / len(noise)


def vmap(f: Callable, x: Tensor, noise: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    y, pull = torch.func.vjp(f, x)
    (products,) = torch.func.vmap(pull)(noise)
    return y, (products * noise).flatten(2).sum(2).mean(0)


def jacrev(f: Callable, x: Tensor, noise: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    def of_one(one: Tensor) -> tuple[Tensor, Tensor]:
        y = f(one[None])[0]
        return y, y

    jacobian, y = torch.func.vmap(torch.func.jacrev(of_one, has_aux=True))(x)
    return y, jacobian.diagonal(dim1=1, dim2=2).sum(1)


def ours(f: Callable, x: Tensor, noise: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    return hutchinson_trace(f, x, probes=len(noise), noise=noise)


def exact(f: Callable, x: Tensor, noise: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    return hutchinson_trace(f, x, kind="exact")


def operations(case: Case, probes: int, training: bool) -> int:
    """Returns the fewest multiplications and additions: x, at most D products in every layer, gradients."""
    taps = case.make(case.sizes).layers[0].weight[0, 0].numel() * math.prod(case.plane)
    layers = [a * b * taps for a, b in zip(case.sizes[1:], case.sizes[:-1], strict=True)]
    of_probe = sum(layers) * (2 if training else 1) + (sum(layers[1:-1]) if training else 0)
    of_x = sum(layers) * (2 if training else 1) + (sum(layers[1:]) if training else 0)
    return 2 * case.batch * (min(probes, case.sizes[0] * math.prod(case.plane)) * of_probe + of_x)


@pytest.mark.parametrize("training", [False, True], ids=["value", "training"])
@pytest.mark.parametrize(("name", "probes"), RUNS)
@pytest.mark.benchmark(group="hutchinson_trace")
def bench_hutchinson_trace(benchmark, name, probes, training):
    torch.manual_seed(0)
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    case = CASES[name]
    field = case.make(case.sizes, time="concat-squash")
    textbook, parameters = Textbook(field), list(field.parameters())
    given = case.sizes[0], *case.plane
    every = probes == "exact"
    count = math.prod(given) if every else probes
    x, noise = torch.randn(case.batch, *given), (torch.rand(count, case.batch, *given) - 0.5).sign()
    if every:
        noise = torch.eye(count).reshape(count, 1, *given).expand(-1, case.batch, *given)

    def call(f: Callable, estimate: Estimate, samples: int | None = None, shared: bool = False) -> Callable:
        v = noise[:, :1].contiguous() if shared else noise[:, :samples]

        def run() -> tuple[Tensor, ...]:
            with torch.set_grad_enabled(training):
                y, trace = estimate(f() if f is at_time else f, x[:samples], v, training)
                if not training:
                    return y, trace
                return y, trace, *torch.autograd.grad(y.sum() + trace.sum(), parameters, materialize_grads=True)

        return run

    def at_time():
        return field.at(TIME)

    if every:
        ways = {"torch.func.jacrev": (textbook, jacrev), "fastgen, any callable": (textbook, exact)}
        ways["fastgen, the field"] = (at_time, exact)
    else:
        ways = {"loop of autograd.grad": (textbook, loop), "torch.func.vmap": (textbook, vmap)}
        ways |= {"fastgen, any callable": (textbook, ours), "fastgen, the field": (at_time, ours)}
    found = {what: call(*way, samples=CHECKED)() for what, way in ways.items()}
    v = noise[:, :CHECKED].double()
    y, total = reference.hutchinson_trace(textbook.double(), x[:CHECKED].double(), v, v)
    true = [y, total if every else total / count]
    true += torch.autograd.grad(y.sum() + true[1].sum(), parameters, materialize_grads=True) if training else []
    textbook.float()
    for results in found.values():
        for one, right in zip(results, true, strict=True):
            assert (one - right).abs().max() <= 1e-4 * (1 + right.abs().max())
    calls = {what: call(*way) for what, way in ways.items()}
    if name.startswith("784"):
        calls["fastgen, the field, noise shared in the batch"] = call(at_time, ours, shared=True)
    least = operations(case, count, training)
    floors = {"fastgen, the field": lambda: least / _C.fma_peak(threads) / 1e9}
    providers = [Provider(what, run, 1, threads, floor=floors.get(what)) for what, run in calls.items()]
    interleave(benchmark, providers, size(case.rounds, 1))
    way = "value and gradient of all parameters" if training else "value"
    how = "exact" if every else f"{probes} probe{'s' if probes > 1 else ''}"
    part = Part(
        f"hutchinson_trace-{name}-{how.replace(' ', '-')}-{'training' if training else 'value'}",
        f"hutchinson_trace, {how}, {name}, time concat-squash, batch {case.batch:,}, {way}",
        "call",
    )
    part.add(providers, compared_with=providers[0])
    if not QUICK:
        others = [p for p in providers if not p.name.startswith("fastgen")]
        fastest = min(others, key=lambda p: p.seconds)
        callable_, known = providers[len(others)], providers[len(others) + 1]
        of_callable, of_known = (p.speedup_over(fastest) for p in (callable_, known))
        if probes == FEW[-1]:
            part.bars = [Bar(f"any callable, over the faster other ({fastest.name})", 1, of_callable)]
        if probes == FEW[-1] and case.needed:
            part.bars.append(Bar(f"the field as such, over the faster other ({fastest.name})", case.needed, of_known))
        part.facts = {"any callable, over the faster other": of_callable, "the field as such": of_known}
    publish(part, benchmark)
