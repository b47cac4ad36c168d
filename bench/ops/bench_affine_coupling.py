"""An affine coupling of 16 x 48 x 64 x 64 elements: the kernel against eager and compiled PyTorch, and a copy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastgen.ops import affine_coupling, affine_coupling_
from fastgen.reference import affine_coupling as reference

from ..suite.copying import copy_floor
from ..suite.interleave import Provider, interleave
from ..suite.machine import keep_freed_memory, thread_counts
from ..suite.quick import QUICK, size
from ..suite.report import Bar, Part, publish

pytestmark = pytest.mark.needs_extension
SHAPE, ROUNDS = size((16, 48, 64, 64), (2, 4, 3, 5)), size(15, 1)
FORWARD_BYTES, BACKWARD_BYTES = 16, 24


def both_ways(function: Callable, x: Tensor, parameters: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    y, log_det = function(x, parameters, scale)
    return torch.autograd.grad(y.sum() + log_det.sum(), (x, parameters))


@pytest.mark.parametrize("how", ["exp", "tanh"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward-backward"])
@pytest.mark.benchmark(group="affine_coupling")
def bench_affine_coupling(benchmark, how, backward):
    torch.manual_seed(0)
    torch._dynamo.reset()
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    number = reference.PARAMETERISATIONS.index(how)
    x = torch.randn(SHAPE, requires_grad=backward)
    parameters = torch.randn(SHAPE[0], 2 * SHAPE[1], *SHAPE[2:], requires_grad=backward)
    scale = torch.ones(SHAPE[1])

    def eager(x: Tensor, parameters: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return reference.affine_coupling(x, parameters, scale, None, False, number, False)

    def ours(x: Tensor, parameters: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return affine_coupling(x, parameters, parameterisation=how, scale=scale)

    compiled = torch.compile(eager, fullgraph=True, dynamic=False)
    functions = {"reference, eager": eager, "reference, compiled": compiled, "fastgen": ours}
    exact = eager(x.double(), parameters.double(), scale.double())
    for function in functions.values():
        for found, true in zip(function(x, parameters, scale), exact, strict=True):
            torch.testing.assert_close(found.double(), true, rtol=1e-4, atol=1e-4)

    def call(function: Callable) -> Callable[[], object]:
        return lambda: (both_ways if backward else lambda f, *a: f(*a))(function, x, parameters, scale)

    moved = x.numel() * (FORWARD_BYTES + (BACKWARD_BYTES if backward else 0))
    floor = copy_floor(moved)
    providers = [
        Provider(name, call(function), 1, threads, floor=floor if name == "fastgen" else None)
        for name, function in functions.items()
    ]
    if not backward:
        target = torch.zeros(SHAPE)
        providers += [
            Provider(
                "fastgen, over its input",
                lambda: affine_coupling_(target, parameters, parameterisation=how, scale=scale, inverse=True),
                1,
                threads,
                floor=floor,
            ),
            Provider("clone", x.clone, 1, threads, floor=copy_floor(2 * x.nbytes)),
        ]
    interleave(benchmark, providers, ROUNDS)
    way = "forward and backward" if backward else "forward"
    dimensions = " x ".join(map(str, SHAPE))
    part = Part(
        f"affine_coupling-{how}-{'backward' if backward else 'forward'}",
        f"affine_coupling, {how}, {dimensions}, {way}",
        "call",
    )
    part.add(providers, compared_with=providers[0])
    if not QUICK:
        needed = {("exp", False): 1, ("exp", True): 1.2, ("tanh", False): 2, ("tanh", True): 2}[how, backward]
        part.bars = [Bar("over compiled", needed, providers[2].speedup_over(providers[1]))]
        if not backward:
            clone = providers[4].seconds * FORWARD_BYTES / 8
            part.bars.append(Bar("of the bandwidth of clone", 80, 100 * clone / providers[2].seconds, "%"))
            part.bars.append(Bar("of the bandwidth of copy_, over its input", 90, providers[3].percent_of_floor, "%"))
    publish(part, benchmark)
