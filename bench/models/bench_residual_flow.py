"""A block of a Residual Flow: value, training step and inverse, each with the log-determinant by a series of ``TERMS``.

All have the same network and the same estimator. "PyTorch, series" is the block as one writes it, the series recorded
by ``autograd.grad`` and differentiated; "PyTorch, Neumann" has the paper's gradient estimator; normflows has that and
computes the gradient in the forward pass, which is its default; its inverse stops at a coarser tolerance.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastgen import _C
from fastgen.nn import InvertibleResidual, LipschitzConvNet, LipschitzMLP
from fastgen.nn.residual.lipschitz import LipschitzLayer
from fastgen.nn.residual.residual_log_det import neumann_series

from ..suite.interleave import Provider, interleave
from ..suite.machine import keep_freed_memory, thread_counts
from ..suite.memory import peak_mebibytes
from ..suite.quick import QUICK, size
from ..suite.report import Bar, Part, publish

pytestmark = [pytest.mark.needs_extension, pytest.mark.filterwarnings("default")]
TERMS, TOLERANCE = {"training step": 5, "value": 20, "inverse": 20}, 1e-5
TOY, IMAGE = size((128, 500), (8, 6)), size((12, 16, 64, 32), (2, 4, 4, 3))
_ROUNDING = 1e-3  # of sums over a sample in single precision, beside norms that are known to 1e-4


class Textbook(nn.Module):
    """The network layer by layer, as public code has it."""

    def __init__(self, net: LipschitzMLP | LipschitzConvNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        for activation, layer in zip(self.net.activations, self.net.layers, strict=True):
            x = layer(activation(x))
        return x


def workload(kind: str) -> tuple[nn.Module, Tensor, str]:
    """Returns a network, data and their description.

    The layers are at their bounds and the biases large, so that the Jacobian does not vanish, as after training.
    """
    bound = {"pre_activation": True, "zero": False, "tolerance": 1e-4}
    if kind == "toy":
        width, batch = TOY
        net, shape = LipschitzMLP(2, [width] * 4, **bound), (batch, 2)
        title = f"2-d, {width} x 4 hidden units, {batch:,} samples"
    else:
        channels, side, hidden, batch = IMAGE
        net, shape = LipschitzConvNet(channels, (side, side), hidden, **bound), (batch, channels, side, side)
        title = f"{channels} x {side} x {side}, 3x3-1x1-3x3 with {hidden} channels, {batch} images"
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, LipschitzLayer):
                outputs, inputs, *kernel = layer.weight.shape
                nn.init.orthogonal_(layer.weight)
                layer.weight.add_(2 / math.sqrt(inputs * outputs) / math.prod(kernel))
                layer.bias.fill_(1)
    return net.eval(), torch.randn(shape), title


def series(g: nn.Module, x: Tensor, v: Tensor, terms: int, training: bool) -> tuple[Tensor, Tensor]:
    """Returns g(x) and the log-determinant, with every product recorded."""
    with torch.enable_grad():
        x = x if training else x.detach().requires_grad_()
        y, carried, total = g(x), v, x.new_zeros(len(x))
        for k in range(1, terms + 1):
            (carried,) = torch.autograd.grad(y, x, carried, retain_graph=True, create_graph=training)
            total = total + (-1) ** (k + 1) / k * (carried * v).flatten(1).sum(1)
    return y, total


def neumann(g: nn.Module, x: Tensor, v: Tensor, terms: int, training: bool) -> tuple[Tensor, Tensor]:
    """Returns g(x) and a scalar whose gradient is that of the log-determinant, by the Neumann series."""
    y, carried, w = g(x), v, v
    for k in range(1, terms):
        (carried,) = torch.autograd.grad(y, x, carried, retain_graph=True)
        w = w + (-1) ** k * carried
    (product,) = torch.autograd.grad(y, x, w, create_graph=training)
    return y, (product * v).flatten(1).sum(1)


def normflows(g: nn.Module, x: Tensor, v: Tensor, terms: int, training: bool) -> tuple[Tensor, Tensor]:
    """Runs normflows' block in training, with noise of its own; else its series, without its exact 2-d Jacobian."""
    from normflows.flows.residual import basic_logdet_estimator, iResBlock

    if training:
        block = iResBlock(g, n_power_series=terms - 1, neumann_grad=True, grad_in_forward=True)
        z, log_det = block(x, torch.zeros(len(x), 1))
        return z - x, -log_det[:, 0]
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = g(x)
        return y.detach(), basic_logdet_estimator(y, x, terms, v, lambda k: 1.0, False)


def fixed_point(g: nn.Module, z: Tensor) -> Tensor:
    """Iterates all samples until the last has converged."""
    x = z
    while (residual := z - g(x) - x).abs().max() > TOLERANCE:
        x = x + residual
    return x


def fixed_point_of_normflows(g: nn.Module, z: Tensor) -> Tensor:
    """Iterates as normflows does, until the square of a step is below 1e-5 (1 + |z|)."""
    from normflows.flows.residual import iResBlock

    return iResBlock(g)._inverse_fixed_point(z)


ESTIMATES = {"PyTorch, series": series, "PyTorch, Neumann": neumann, "normflows": normflows}


def jobs(net: nn.Module, x: Tensor, what: str) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Returns the calls that are timed, by provider."""
    g, terms, training = Textbook(net), TERMS[what], what == "training step"
    net.train(training)
    names = ["PyTorch, series", *(["PyTorch, Neumann"] if training else [])]
    names += ["normflows"] if importlib.util.find_spec("normflows") else []
    block = InvertibleResidual(net, log_det="power-series", terms=terms, exact_features=0, tolerance=TOLERANCE)
    z = (x + g(x)).detach()

    def step(value_and_log_det: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[], tuple[Tensor, ...]]:
        def call() -> tuple[Tensor, ...]:
            given = x.clone().requires_grad_()
            y, log_det = value_and_log_det(given)
            loss = (0.5 * (given + y).square().flatten(1).sum(1) - log_det).mean()
            return torch.autograd.grad(loss, [given, *net.parameters()])

        return call

    def job(estimate: Callable) -> Callable[[], tuple[Tensor, ...]]:
        def run(at: Tensor) -> tuple[Tensor, Tensor]:
            return estimate(g, at, torch.randn_like(at), terms, training)

        @torch.no_grad()
        def inverse() -> tuple[Tensor, Tensor]:
            back = fixed_point_of_normflows(g, z) if estimate is normflows else fixed_point(g, z)
            return back, run(back)[1]

        if training:
            return step(run)
        return inverse if what == "inverse" else torch.no_grad()(lambda: run(x))

    def ours(at: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = block(at)
        return y - at, log_det

    found = {name: job(ESTIMATES[name]) for name in names}
    timed = {
        "training step": step(ours),
        "value": torch.no_grad()(lambda: ours(x)),
        "inverse": torch.no_grad()(lambda: block.inverse(z)),
    }
    return found | {"fastgen": timed[what]}


def check(net: nn.Module, x: Tensor, what: str) -> None:
    """Checks that with the same noise all have the same values, and the gradients of the Neumann estimator's series."""
    g, terms, training = Textbook(net), TERMS[what], what == "training step"
    x = x.clone().requires_grad_()
    torch.manual_seed(0)
    v = torch.randn_like(x)
    y, log_det = neumann_series(net.at(), x, v, x.new_ones(terms))
    close(y, g(x))
    close(log_det, series(g, x, v, terms, False)[1])
    inputs = [x, *net.parameters()]
    gradients = torch.autograd.grad(log_det.mean(), inputs, materialize_grads=True)
    for name, estimate in ESTIMATES.items():
        if name == "normflows" and not importlib.util.find_spec("normflows"):
            continue
        if training and name != "PyTorch, series":
            torch.manual_seed(0)
            other = torch.autograd.grad(estimate(g, x, v, terms, True)[1].mean(), inputs, materialize_grads=True)
            for ours, theirs in zip(gradients, other, strict=True):
                close(ours, theirs)
        elif not training:
            close(estimate(g, x, v, terms, False)[0], y)
    if what == "inverse":
        with torch.no_grad():
            z = x + y
            back = InvertibleResidual(net, log_det="power-series", tolerance=TOLERANCE).inverse(z)[0]
            assert (back + g(back) - z).abs().max() <= 2 * TOLERANCE


def operations(net: nn.Module, x: Tensor, what: str) -> int:
    """Returns the least number of multiplications and additions: network, products, and in training their gradients."""
    layers = [layer for layer in net.modules() if isinstance(layer, LipschitzLayer)]
    once = 2 * len(x) * x.shape[2:].numel() * sum(layer.weight.numel() for layer in layers)
    return once * (1 + TERMS[what] + (4 if what == "training step" else 0))


def close(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() <= _ROUNDING * (1 + theirs.abs().max())


@pytest.mark.parametrize("what", TERMS)
@pytest.mark.parametrize("kind", ["toy", "image"])
@pytest.mark.benchmark(group="residual_flow")
def bench_residual_flow(benchmark, kind, what):
    torch.manual_seed(0)
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    net, x, title = workload(kind)
    check(net, x, what)
    calls = jobs(net, x, what)
    providers = {name: Provider(name, call, 1, threads) for name, call in calls.items()}
    if what != "inverse":
        least = operations(net, x, what)
        providers["fastgen"].floor = lambda: least / _C.fma_peak(threads) / 1e9
    interleave(benchmark, list(providers.values()), size(9, 1))
    part = Part(
        f"residual_flow-{kind}-{what.replace(' ', '-')}",
        f"Residual Flow block, {title}, {what}, {TERMS[what]} terms",
        "call",
    )
    part.add(list(providers.values()), compared_with=providers["PyTorch, series"])
    for name, call in calls.items():
        part.facts[f"peak memory of {name}, MiB"] = peak_mebibytes(call)
    if not QUICK:
        ours = providers["fastgen"]
        part.bars = [
            Bar(f"over {name}", 2, ours.speedup_over(providers[name]))
            for name in ("PyTorch, series", "normflows")
            if name in providers
        ]
    publish(part, benchmark)
