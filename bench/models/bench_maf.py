"""MAF of 5 steps on 64 features, hidden layers of 128 x 2: density, training step, sampling.

The libraries' networks are of the same size, with weights of their own; an accelerated library has its own weights.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from fastgen.distributions import standard_normal_log_prob
from fastgen.models.flows import MAF, MAFConfig

from ..suite.quick import size
from .contest import WAYS, Contender, run

pytestmark = [pytest.mark.needs_extension, pytest.mark.filterwarnings("default")]
FEATURES, STEPS, WIDTH, BATCH = size((64, 5, 128, 1024), (6, 2, 8, 5))


def fastgen() -> Contender:
    flow = MAF(MAFConfig((FEATURES,), layers=STEPS, hidden=(WIDTH, WIDTH), norm="none"))
    return Contender("fastgen", flow, flow.log_prob, flow.sample)


def nflows() -> Contender:
    from nflows.distributions.normal import StandardNormal
    from nflows.flows.base import Flow
    from nflows.transforms import CompositeTransform, MaskedAffineAutoregressiveTransform, ReversePermutation

    layers = []
    for _ in range(STEPS):
        layers.append(ReversePermutation(FEATURES))
        layers.append(MaskedAffineAutoregressiveTransform(FEATURES, WIDTH, num_blocks=1, use_residual_blocks=False))
    flow = Flow(CompositeTransform(layers), StandardNormal([FEATURES])).eval()
    return Contender("nflows", flow, flow.log_prob, flow.sample, "nflows")


def normflows() -> Contender:
    """Returns normflows' layers in the direction of a MAF; its ``forward`` is the parallel one."""
    from normflows.flows import MaskedAffineAutoregressive

    layers = nn.ModuleList(
        MaskedAffineAutoregressive(FEATURES, WIDTH, num_blocks=1, use_residual_blocks=False) for _ in range(STEPS)
    )

    def log_prob(x: Tensor) -> Tensor:
        total = x.new_zeros(len(x))
        for layer in layers:
            x, log_det = layer(x)
            total = total + log_det
        return total + standard_normal_log_prob(x)

    def sample(n: int) -> Tensor:
        z = torch.randn(n, FEATURES)
        for layer in reversed(layers):
            z, _ = layer.inverse(z)
        return z

    return Contender("normflows", layers, log_prob, sample, "normflows")


def zuko() -> Contender:
    from zuko.flows import MAF as Zuko

    flow = Zuko(FEATURES, transforms=STEPS, hidden_features=(WIDTH, WIDTH))
    return Contender("zuko", flow, lambda x: flow().log_prob(x), lambda n: flow().sample((n,)), "zuko")


PEERS = {"nflows": nflows, "normflows": normflows, "zuko": zuko}


@pytest.mark.parametrize("what", WAYS)
@pytest.mark.benchmark(group="maf")
def bench_maf(benchmark, what):
    torch.manual_seed(0)
    peers = [make() for name, make in PEERS.items() if importlib.util.find_spec(name)]
    if not peers:
        pytest.skip("none of nflows, normflows and zuko is installed")
    title = f"MAF, {FEATURES} features, {STEPS} steps, {WIDTH} x 2 hidden units, {BATCH:,} samples"
    bars = {"fastest": 20 if what == "sampling" else 1, "accelerated": 2}
    run(benchmark, "maf", title, [fastgen(), *peers], what, torch.randn(BATCH, FEATURES), bars)
