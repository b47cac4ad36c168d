"""Glow's 1x1 convolution, 64 x 12 x 32 x 32 and 64 x 48 x 16 x 16: fastgen against PyTorch and the public libraries."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastgen.ops import lu_conv1x1
from fastgen.reference import lu_conv1x1 as reference

from ..suite.copying import copy_floor
from ..suite.interleave import Provider, interleave
from ..suite.machine import keep_freed_memory, thread_counts
from ..suite.quick import QUICK, size
from ..suite.report import Bar, Part, publish

pytestmark = [
    pytest.mark.needs_extension,
    pytest.mark.filterwarnings("ignore:.*_prims_common.check:FutureWarning"),  # the compiled backward of a solve
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),  # max-autotune
    pytest.mark.filterwarnings(r"ignore:torch\.(lu|triangular_solve) is deprecated:UserWarning"),  # of the peers
]
SHAPES = size([(64, 12, 32, 32), (64, 48, 16, 16)], [(2, 4, 3, 5)])
ROUNDS = size(15, 1)
BYTES = {"forward": 8, "inverse": 8, "inverse and backward": 8 + 16}  # of an element, read or written once
PRODUCTS = {"forward": 1, "inverse": 1, "inverse and backward": 5}  # of every position by a matrix
MODES = {"torch.compile": "default"} | size({"torch.compile, max-autotune": "max-autotune-no-cudagraphs"}, {})
BAR = 2


def peers(channels: int) -> dict[str, nn.Module]:
    """Returns the installed libraries' layers, with weights of their own."""
    found: dict[str, nn.Module] = {}
    if importlib.util.find_spec("nflows"):
        from nflows.transforms import OneByOneConvolution

        found["nflows"] = OneByOneConvolution(channels, identity_init=False)
    if importlib.util.find_spec("normflows"):
        from normflows.flows import Invertible1x1Conv

        found["normflows, LU"] = Invertible1x1Conv(channels, use_lu=True)
    return found


def call_of(name: str, layer: nn.Module, inverse: bool) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Returns the call of a library; normflows maps from latent to data, so its forward is the others' inverse."""
    return layer.inverse if inverse != name.startswith("normflows") else layer.forward


def factors_of(channels: int) -> tuple[Tensor, ...]:
    """Returns a random rotation and an actnorm."""
    permutation, lower, upper = torch.linalg.lu(torch.linalg.qr(torch.randn(channels, channels))[0])
    diagonal = upper.diag()
    factors = permutation.argmax(1), lower, upper, diagonal.abs().log(), diagonal.sign()
    return *factors, torch.randn(channels), 0.1 * torch.randn(channels)


def floor(x: Tensor, what: str, threads: int) -> Callable[[], float]:
    """Returns the longer of two times at rates measured now: copying its bytes, and its multiply-adds."""
    from fastgen import _C

    copied, operations = copy_floor(BYTES[what] * x.numel()), PRODUCTS[what] * 2 * x.numel() * x.shape[1]
    return lambda: max(copied(), operations / (_C.fma_peak(threads) * 1e9))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("what", BYTES)
@pytest.mark.benchmark(group="lu_conv1x1")
def bench_lu_conv1x1(benchmark, what, shape):
    torch.manual_seed(0)
    torch._dynamo.reset()
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    inverse, backward = what != "forward", what.endswith("backward")
    x, factors = torch.randn(shape), factors_of(shape[1])
    learned = [x, *(t for t in factors if t.is_floating_point() and t is not factors[4])]

    def eager(x: Tensor) -> tuple[Tensor, Tensor]:
        return reference.lu_conv1x1(x, *factors, inverse)

    def ours(x: Tensor) -> tuple[Tensor, Tensor]:
        return lu_conv1x1(x, *factors, inverse=inverse)

    exact = reference.lu_conv1x1(*(t.double() if t.is_floating_point() else t for t in (x, *factors)), inverse)
    for single, mine, true in zip(eager(x), ours(x), exact, strict=True):
        assert (mine - true).abs().max() <= 2 * (single - true).abs().max() + 1e-5
    for tensor in learned if backward else ():
        tensor.requires_grad_()
    layers = peers(shape[1])
    functions = {"reference, eager": (eager, learned)}
    for name, mode in MODES.items():
        functions[name] = (torch.compile(eager, fullgraph=True, dynamic=False, mode=mode), learned)
    for name, layer in layers.items():
        there, back = (call_of(name, layer, way) for way in (inverse, not inverse))
        assert (back(there(x)[0])[0] - x).abs().max() <= 1e-2
        functions[name] = (there, [x, *layer.parameters()])
    functions["fastgen"] = (ours, learned)

    def call(function: Callable, tensors: list[Tensor]) -> Callable[[], object]:
        def run() -> object:
            with torch.set_grad_enabled(backward):
                y, log_det = function(x)
                return torch.autograd.grad(y.sum() + log_det.sum(), tensors) if backward else y

        return run

    providers = [
        Provider(name, call(*work), 1, threads, floor=floor(x, what, threads) if name == "fastgen" else None)
        for name, work in functions.items()
    ]
    interleave(benchmark, providers, ROUNDS)
    dimensions = " x ".join(map(str, shape))
    part = Part(f"lu_conv1x1-{what.replace(' ', '-')}-{shape[1]}", f"lu_conv1x1, {dimensions}, {what}", "call")
    part.add(providers, compared_with=providers[0])
    if not QUICK and what == "inverse":
        fastest = min(providers[:-1], key=lambda p: p.seconds)
        part.bars = [Bar(f"over {fastest.name}", BAR, providers[-1].speedup_over(fastest))]
    publish(part, benchmark)
