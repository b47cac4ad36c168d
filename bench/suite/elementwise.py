"""Benchmark of an elementwise transform: eager, compiled, the libraries that have it, the kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .copying import copy_floor
from .interleave import Provider, interleave
from .machine import keep_freed_memory, thread_counts
from .quick import QUICK, size
from .report import Bar, Part, publish
from .rounding import moved_by_rounding

ROWS, WIDTH, ROUNDS = size(4096, 16), size(64, 3), size(9, 1)
WAYS = ("forward", "inverse", "forward and backward")
Transform = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]
"""Maps x, the raw parameters, and whether it is the inverse, to the result."""


@dataclass
class Contest:
    """One transform of [4096, 64] elements.

    Attributes:
        op, what: for the title.
        count: raw parameters of an element.
        ours, reference: the op, and its definition in plain PyTorch.
        peers: other libraries' functions of the same formula and conventions, by name; the first has no copy before it.
        kin: those of another parameterisation, whose values are not compared.
    """

    op: str
    what: str
    count: int
    ours: Transform
    reference: Transform
    peers: dict[str, Transform] = field(default_factory=dict)
    kin: dict[str, Transform] = field(default_factory=dict)
    bars: tuple[float, float] = (8, 25)
    """Targets over the best compiled and over the fastest eager provider."""

    @property
    def compiled(self) -> dict[str, Transform]:
        """Returns the providers that are compiled, too; of libraries that are copies, one."""
        first = dict(list(self.peers.items())[:1])
        return {"reference": self.reference, **size(first | self.kin, {})}

    def bytes(self, what: str) -> int:
        """Returns the bytes read and written for an element."""
        return 4 * (7 + 3 * self.count if what == "forward and backward" else 3 + self.count)


def run(benchmark, contest: Contest, what: str) -> None:
    """Times one way of the transform and publishes it."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    inverse, gradients = what == "inverse", what == "forward and backward"
    x = (2 * torch.randn(ROWS, WIDTH)).requires_grad_(gradients)
    parameters = torch.randn(ROWS, WIDTH, contest.count).requires_grad_(gradients)
    along = torch.randn(2, ROWS, WIDTH)

    def call(function: Transform) -> Callable[[], object]:
        def forward() -> object:
            return function(x, parameters, inverse)

        def both() -> object:
            return torch.autograd.grad(forward(), (x, parameters), tuple(along))

        return both if gradients else forward

    doubles = x.detach().double(), parameters.detach().double()
    exact, moved = (contest.reference(*a, inverse) for a in (doubles, tuple(moved_by_rounding(d) for d in doubles)))
    single = contest.reference(x, parameters, inverse)
    for function in (contest.ours, *contest.peers.values()):
        for found, plain, true, near in zip(function(x, parameters, inverse), single, exact, moved, strict=True):
            error, usual = (found - true).abs(), (plain - true).abs()
            if function is contest.ours:
                assert error.max() <= torch.maximum(2 * usual.max(), (near - true).abs().max()) + 1e-6
            else:  # a peer's inverse may lose all but two digits of an element near the edge of a bin
                assert error.mean() <= 10 * usual.mean() + 1e-6
    compiled = {
        f"{name}, compiled": torch.compile(function, dynamic=False) for name, function in contest.compiled.items()
    }
    tuned = torch.compile(contest.reference, dynamic=False, mode="max-autotune-no-cudagraphs")
    compiled |= size({"reference, compiled, max-autotune": tuned}, {})
    rivals = {"reference": contest.reference, **compiled, **contest.peers, **contest.kin}
    floor = copy_floor(contest.bytes(what) * x.numel())
    providers = {name: Provider(name, call(function), 1, threads) for name, function in rivals.items()}
    fastgen = Provider("fastgen", call(contest.ours), 1, threads, floor=floor)
    interleave(benchmark, [*providers.values(), fastgen], ROUNDS)
    title = f"{contest.op}, {x.numel():,} elements, {contest.what}, {what}"
    part = Part(f"{contest.op}-{what.replace(' ', '-')}", title, "call")
    part.add([*providers.values(), fastgen], compared_with=providers["reference"])
    if not QUICK:
        others = [name for name in compiled if not name.startswith("reference")] or list(compiled)
        best = min((providers[name] for name in others), key=lambda p: p.seconds)
        eager = min((p for name, p in providers.items() if name not in compiled), key=lambda p: p.seconds)
        part.bars = [
            Bar(f"over the best compiled peer ({best.name})", contest.bars[0], fastgen.speedup_over(best)),
            Bar(f"over the fastest eager one ({eager.name})", contest.bars[1], fastgen.speedup_over(eager)),
        ]
    publish(part, benchmark)
