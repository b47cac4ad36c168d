"""Neural spline flows on 64 features, of coupling and of autoregressive layers: 4 steps, 8 bins, width 128, 2 blocks.

fastgen's coupling flow has nflows' weights and is checked against it. The networks of normflows and zuko are of the
same size, with weights of their own; zuko's are plain layers of the same number.
"""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from torch import Tensor, nn

from fastgen.distributions import standard_normal_log_prob
from fastgen.nn import (
    FlowSequential,
    MaskedSplineAutoregressive,
    Permutation,
    ResidualMLP,
    SplineCoupling,
    SplineTransform,
)

from ..suite.quick import size
from .contest import WAYS, Contender, run

pytestmark = [pytest.mark.needs_extension, pytest.mark.filterwarnings("default")]
FEATURES, STEPS, WIDTH, BLOCKS, BINS = size((64, 4, 128, 2, 8), (6, 2, 8, 1, 4))
BATCH = {"coupling": size(1024, 5), "autoregressive": size(256, 5)}
BOUND = 3.0


def fastgen(kind: str) -> Contender:
    layers: list[nn.Module] = []
    for _ in range(STEPS):
        layers.append(Permutation.reversed(FEATURES))
        if kind == "autoregressive":
            layers.append(MaskedSplineAutoregressive(FEATURES, bins=BINS, bound=BOUND, width=WIDTH, blocks=BLOCKS))
        else:
            kept, spline = FEATURES // 2, SplineTransform(BINS, bound=BOUND)
            outputs = (FEATURES - kept) * spline.parameters_per_element
            layers.append(SplineCoupling(ResidualMLP(kept, outputs, WIDTH, BLOCKS), spline))
    flow = FlowSequential(*layers)

    def log_prob(x: Tensor) -> Tensor:
        z, log_det = flow(x)
        return standard_normal_log_prob(z) + log_det

    return Contender("fastgen", flow, log_prob, lambda n: flow.inverse(torch.randn(n, FEATURES))[0])


def nflows(kind: str) -> Contender:
    from nflows.distributions.normal import StandardNormal
    from nflows.flows.base import Flow
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import (
        CompositeTransform,
        MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
        PiecewiseRationalQuadraticCouplingTransform,
        ReversePermutation,
    )

    splines, layers = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}, []
    for _ in range(STEPS):
        layers.append(ReversePermutation(FEATURES))
        if kind == "autoregressive":
            layers.append(
                MaskedPiecewiseRationalQuadraticAutoregressiveTransform(FEATURES, WIDTH, num_blocks=BLOCKS, **splines)
            )
        else:
            layers.append(
                PiecewiseRationalQuadraticCouplingTransform(
                    (torch.arange(FEATURES) >= FEATURES // 2).int(),
                    lambda inputs, outputs: ResidualNet(inputs, outputs, hidden_features=WIDTH, num_blocks=BLOCKS),
                    **splines,
                )
            )
    flow = Flow(CompositeTransform(layers), StandardNormal([FEATURES])).eval()
    return Contender("nflows", flow, flow.log_prob, flow.sample, "nflows")


def normflows(kind: str) -> Contender:
    from normflows import NormalizingFlow
    from normflows.distributions.base import DiagGaussian
    from normflows.flows.neural_spline.wrapper import (
        AutoregressiveRationalQuadraticSpline,
        CoupledRationalQuadraticSpline,
    )

    layer = AutoregressiveRationalQuadraticSpline if kind == "autoregressive" else CoupledRationalQuadraticSpline
    steps = [layer(FEATURES, BLOCKS, WIDTH, num_bins=BINS, tail_bound=BOUND) for _ in range(STEPS)]
    flow = NormalizingFlow(DiagGaussian(FEATURES, trainable=False), steps)
    return Contender("normflows", flow, flow.log_prob, lambda n: flow.sample(n)[0], "normflows")


def zuko(kind: str) -> Contender:
    from zuko.flows import NSF

    widths = (WIDTH,) * (2 * BLOCKS + 1)
    passes = None if kind == "autoregressive" else 2
    flow = NSF(FEATURES, bins=BINS, passes=passes, transforms=STEPS, hidden_features=widths)
    return Contender("zuko", flow, lambda x: flow().log_prob(x), lambda n: flow().sample((n,)), "zuko")


@torch.no_grad()
def copy_from_nflows(ours: Contender, theirs: Contender) -> None:
    """Copies nflows' weights; it divides parameters by the root of the width before the softmax."""
    couplings = [layer for layer in ours.module.layers if isinstance(layer, SplineCoupling)]
    for mine, other in zip(couplings, theirs.module._transform._transforms[1::2], strict=True):
        net = other.transform_net
        mine.net.first.load_state_dict(net.initial_layer.state_dict())
        for block, their_block in zip(mine.net.blocks, net.blocks, strict=True):
            block.first.load_state_dict(their_block.linear_layers[0].state_dict())
            block.second.load_state_dict(their_block.linear_layers[1].state_dict())
        scale = torch.ones(3 * BINS - 1)
        scale[: 2 * BINS] = 1 / math.sqrt(WIDTH)
        scale = scale.repeat(FEATURES - FEATURES // 2)
        mine.net.last.weight.copy_(net.final_layer.weight * scale[:, None])
        mine.net.last.bias.copy_(net.final_layer.bias * scale)


PEERS = {"nflows": nflows, "normflows": normflows, "zuko": zuko}


@pytest.mark.parametrize("what", WAYS)
@pytest.mark.parametrize("kind", BATCH)
@pytest.mark.benchmark(group="neural_spline")
def bench_neural_spline(benchmark, kind, what):
    torch.manual_seed(0)
    peers = [make(kind) for name, make in PEERS.items() if importlib.util.find_spec(name)]
    if not peers:
        pytest.skip("none of nflows, normflows and zuko is installed")
    ours, x = fastgen(kind), torch.randn(BATCH[kind], FEATURES)
    if kind == "coupling" and peers[0].name == "nflows":
        copy_from_nflows(ours, peers[0])
        with torch.no_grad():
            torch.testing.assert_close(ours.log_prob(x), peers[0].log_prob(x), rtol=1e-4, atol=1e-3)
    title = f"Neural spline flow of {kind} layers, {FEATURES} features, {STEPS} steps, {BATCH[kind]:,} samples"
    run(benchmark, f"nsf-{kind}", title, [ours, *peers], what, x, {"fastest": 3, "accelerated": 2})
