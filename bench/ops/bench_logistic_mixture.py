"""The log-probability of PixelCNN++'s images and its gradient, ten components: eager, compiled, fastgen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgen.ops import logistic_mixture
from fastgen.reference.logistic_mixture import logistic_mixture as formula

from ..suite.copying import copy_floor
from ..suite.interleave import Provider, interleave
from ..suite.machine import keep_freed_memory, thread_counts
from ..suite.quick import QUICK, size
from ..suite.report import Bar, Part, publish

pytestmark = pytest.mark.needs_extension
SHAPE = size((16, 32, 32), (1, 4, 4))
MIXTURES = 10
LEVELS, LEAST_LOG_SCALE = 256, -7.0  # as the op has them by default
ROUNDS = size(15, 1)
EPSILON = torch.finfo(torch.float32).eps


def eager(level: Tensor, parameters: Tensor) -> Tensor:
    return formula(level, parameters, LEVELS, LEAST_LOG_SCALE)


def gradient(function, level: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    parameters = parameters.detach().requires_grad_()
    value = function(level, parameters)
    return value.detach(), torch.autograd.grad(value.sum(), parameters)[0]


def check(function, level: Tensor, parameters: Tensor) -> None:
    """Checks that errors are at most twice those of eager float32, plus that of rounding the parameters."""
    exact = gradient(eager, level, parameters.double())
    near = gradient(eager, level, parameters.double() * (1 + EPSILON * (2 * (parameters > 0) - 1)))
    single, ours = gradient(eager, level, parameters), gradient(function, level, parameters)
    for mine, plain, true, other in zip(ours, single, exact, near, strict=True):
        allowed = 2 * ((plain - true).abs().max() + (other - true).abs().max()) + 4 * EPSILON * true.abs().max()
        assert (mine - true).abs().max() <= allowed


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward-backward"])
@pytest.mark.benchmark(group="logistic_mixture")
def bench_logistic_mixture(benchmark, backward):
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    level = torch.randint(0, LEVELS, (*SHAPE, 3), generator=generator)
    parameters = torch.randn(*SHAPE, 10 * MIXTURES, generator=generator)
    modes = [None] if QUICK else [None, "max-autotune-no-cudagraphs"]
    functions = {"eager": eager, "fastgen": logistic_mixture}
    for mode in modes:
        compiled = torch.compile(formula, fullgraph=True, dynamic=False, mode=mode)
        functions[f"torch.compile, {mode or 'default'}"] = lambda *given, compiled=compiled: compiled(
            *given, LEVELS, LEAST_LOG_SCALE
        )
    check(logistic_mixture, level, parameters)
    for function in functions.values():  # the compiler's errors are its own: five times those of eager were seen
        for theirs, plain in zip(
            gradient(function, level, parameters), gradient(eager, level, parameters), strict=True
        ):
            torch.testing.assert_close(theirs, plain, rtol=1e-3, atol=1e-3)
    units = level[..., 0].numel()
    bytes_moved = parameters.nbytes * (3 if backward else 1) + level.nbytes * (2 if backward else 1)
    copied = copy_floor(bytes_moved)

    def provider(name: str) -> Provider:
        def run() -> object:
            if backward:
                return gradient(functions[name], level, parameters)
            return functions[name](level, parameters)

        return Provider(name, run, units, threads, floor=(lambda: copied() / units) if name == "fastgen" else None)

    providers = {name: provider(name) for name in ("fastgen", *(n for n in functions if n != "fastgen"))}
    interleave(benchmark, list(providers.values()), ROUNDS)
    ours, plain = providers["fastgen"], providers["eager"]
    compiled = [p for name, p in providers.items() if name.startswith("torch.compile")]
    what = "forward and backward" if backward else "forward"
    title = f"logistic_mixture {'x'.join(map(str, SHAPE))}, 3 channels, {MIXTURES} components, {what}"
    part = Part(f"logistic_mixture-{'backward' if backward else 'forward'}", title, "pixel")
    part.add([plain, *compiled, ours], compared_with=plain)
    if not QUICK:
        fastest = min(compiled, key=lambda p: p.seconds)
        part.bars = [
            Bar("over eager", 5, ours.speedup_over(plain)),
            Bar("over the faster compiled one", 2, ours.speedup_over(fastest)),
        ]
    publish(part, benchmark)
