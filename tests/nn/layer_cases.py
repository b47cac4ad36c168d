"""Every public layer of ``fastgen.nn``, small, with inputs: the table that laws over all layers are tested on.

A new layer gets a row here; ``test_layer_cases.py`` fails until it has one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgen import nn as f


@dataclass(frozen=True)
class Case:
    """A layer as its users make it.

    Attributes:
        make: the layer, its parameters drawn from PyTorch's generator.
        shapes: of a sample of each input [N, *shape].
        shared: shapes of further inputs, which all samples share.
        as_input: maps a standard normal input to one that the layer takes.
        seeded: whether the layer estimates something and takes a ``seed``.
    """

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    shared: tuple[tuple[int, ...], ...] = ()
    as_input: Callable[[Tensor, int], Tensor] = lambda x, number: x
    seeded: bool = False

    def layer(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The layer in eval mode, always the same: no parameter is 0, and what a first batch sets is set."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layer = self.make()
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
                layer.train()
                layer(*self.inputs(16, torch.get_default_dtype()), **self.options)
        return layer.to(dtype).eval()

    def inputs(self, n: int = 6, dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[Tensor, ...]:
        """n samples, always the same for a seed."""
        generator = torch.Generator().manual_seed(seed)
        shapes = [*((n, *shape) for shape in self.shapes), *self.shared]
        drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        given = [self.as_input(x, number) for number, x in enumerate(drawn)]
        return tuple(x.to(dtype) if x.is_floating_point() else x for x in given)

    @property
    def options(self) -> dict[str, int]:
        """What the layer is called with beside its inputs."""
        return {"seed": 3} if self.seeded else {}


def _of_mask() -> Tensor:
    return torch.tensor([1.0, 0.0, 1.0, 0.0])


def _levels_and_noise(x: Tensor, number: int) -> Tensor:
    return torch.special.ndtr(x) if number else (4 * torch.special.ndtr(x)).long().clamp(0, 3)


def _spline_net(inputs: int, transformed: int) -> nn.Module:
    return f.MLP(inputs, transformed * f.SplineTransform(4).parameters_per_element, (8,))


IMAGE = (4, 4, 4)

CASES: dict[str, Case] = {
    "MADE": Case(lambda: f.MADE(4, (8, 8)), ((4,),)),
    "MADE with a context": Case(lambda: f.MADE(4, (8, 8), context_features=3), ((4,), (3,))),
    "MLP": Case(lambda: f.MLP(4, 3, (8,)), ((4,),)),
    "ActNorm": Case(lambda: f.ActNorm(4), (IMAGE,)),
    "AdditiveCoupling": Case(lambda: f.AdditiveCoupling(f.MLP(2, 2, (8,))), ((4,),)),
    "AdditiveCoupling with a mask": Case(lambda: f.AdditiveCoupling(f.MLP(4, 4, (8,)), mask=_of_mask()), ((4,),)),
    "AffineCoupling": Case(
        lambda: f.AffineCoupling(f.MLP(2, 4, (8,), context_features=3), parameterisation="tanh"), ((4,), (3,))
    ),
    "AffineCoupling with a mask": Case(lambda: f.AffineCoupling(f.MLP(4, 8, (8,)), mask=_of_mask()), ((4,),)),
    "CausalAttention": Case(lambda: f.CausalAttention(2, strict=True, window=3), ((5, 8), (5, 8), (5, 4))),
    "CausalConv1d": Case(lambda: f.CausalConv1d(3, 5, 2, dilation=2), ((3, 9),)),
    "CheckerboardSplit": Case(f.CheckerboardSplit, (IMAGE,)),
    "ContinuousFlow": Case(
        lambda: f.ContinuousFlow(f.MLPField((4, 8, 4), time="concat"), solver="rk4", step_size=0.25),
        ((4,),),
        seeded=True,
    ),
    "ContinuousFlow with an adaptive solver": Case(
        lambda: f.ContinuousFlow(f.MLPField((4, 8, 4))), ((4,),), seeded=True
    ),
    "ContinuousFlow, gradient autograd": Case(
        lambda: f.ContinuousFlow(f.MLPField((4, 8, 4)), solver="rk4", step_size=0.5, gradient="autograd"),
        ((4,),),
        seeded=True,
    ),
    "ContinuousFlow, gradient adjoint": Case(
        lambda: f.ContinuousFlow(f.MLPField((4, 8, 4)), solver="rk4", step_size=0.25, gradient="adjoint"),
        ((4,),),
        seeded=True,
    ),
    "ConvConditioner": Case(lambda: f.ConvConditioner(4, 2, 8, edge_bias=True), (IMAGE,)),
    "ConvNetField": Case(lambda: f.ConvNetField((4, 8, 4)), (IMAGE,)),
    "ConvResNet": Case(lambda: f.ConvResNet(4, 2, 8, 1), (IMAGE,)),
    "CubicSpline": Case(lambda: f.CubicSpline((4,), 4), ((4,),)),
    "DeepDenseSigmoidal": Case(
        lambda: f.DeepDenseSigmoidal(4), ((4,), (4, f.DeepDenseSigmoidal(4).parameters_per_element))
    ),
    "DeepSigmoidal": Case(lambda: f.DeepSigmoidal(4), ((4,), (4, f.DeepSigmoidal(4).parameters_per_element))),
    "DiagonalAffine": Case(lambda: f.DiagonalAffine(4), ((4,),)),
    "DiagonalLSTM": Case(lambda: f.DiagonalLSTM(4, 6, residual=True), (IMAGE,)),
    "DownRightShiftedConv2d": Case(lambda: f.DownRightShiftedConv2d(4, 3), (IMAGE,)),
    "DownRightShiftedConvTranspose2d": Case(lambda: f.DownRightShiftedConvTranspose2d(4, 3), (IMAGE,)),
    "DownShiftedConv2d": Case(lambda: f.DownShiftedConv2d(4, 3), (IMAGE,)),
    "DownShiftedConvTranspose2d": Case(lambda: f.DownShiftedConvTranspose2d(4, 3), (IMAGE,)),
    "EdgeConv2d": Case(lambda: f.EdgeConv2d(4, 3, edge_bias=True), (IMAGE,)),
    "Flatten": Case(lambda: f.Flatten(IMAGE), (IMAGE,)),
    "FlowBatchNorm": Case(lambda: f.FlowBatchNorm(4, affine=True), (IMAGE,)),
    "FlowPlusPlusStep": Case(lambda: f.FlowPlusPlusStep(IMAGE, 8, 1, 3, heads=2), (IMAGE,)),
    "FlowSequential": Case(
        lambda: f.FlowSequential(f.ActNorm(4), f.Permutation([2, 0, 3, 1]), f.AffineCoupling(f.MLP(2, 4, (8,)))),
        ((4,),),
    ),
    "GatedAttention": Case(lambda: f.GatedAttention(8, heads=2), ((5, 8),), shared=((5, 8),)),
    "GatedAttentionNet": Case(lambda: f.GatedAttentionNet(IMAGE, 3, 8, 1, heads=2), (IMAGE,)),
    "GatedResidualBlock1d": Case(lambda: f.GatedResidualBlock1d(4, 6, 5, 2, 2, global_channels=3), ((4, 9), (3,))),
    "GatedResnet": Case(lambda: f.GatedResnet(4, f.DownRightShiftedConv2d), (IMAGE,)),
    "HutchinsonTrace": Case(lambda: f.HutchinsonTrace(f.MLPField((4, 8, 4)), probes=2), ((4,),), seeded=True),
    "HutchinsonTrace of images": Case(
        lambda: f.HutchinsonTrace(f.ConvNetField((4, 8, 4)), kind="gaussian"), (IMAGE,), seeded=True
    ),
    "HutchinsonTrace of any network": Case(lambda: f.HutchinsonTrace(f.MLP(4, 4, (8,))), ((4,),), seeded=True),
    "Inverse": Case(lambda: f.Inverse(f.MaskedAffineAutoregressive(4, (8, 8))), ((4,),)),
    "InverseAutoregressive": Case(lambda: f.InverseAutoregressive(4, (8, 8)), ((4,),)),
    "InvertibleConv1x1": Case(lambda: f.InvertibleConv1x1(4), (IMAGE,)),
    "InvertibleConv1x1 with ActNorm": Case(lambda: f.InvertibleConv1x1(4, act_norm=True), (IMAGE,)),
    "InvertibleConv1x1 with a full weight": Case(lambda: f.InvertibleConv1x1(4, lu=False), (IMAGE,)),
    "InvertibleResidual": Case(lambda: f.InvertibleResidual(f.LipschitzMLP(4, (8, 8))), ((4,),), seeded=True),
    "InvertibleResidual, exact": Case(
        lambda: f.InvertibleResidual(f.LipschitzMLP(4, (8,)), log_det="exact"), ((4,),), seeded=True
    ),
    "LinearAmortization": Case(lambda: f.LinearAmortization(f.Planar(4, amortized=True), 3), ((4,), (3,))),
    "LipSwish": Case(f.LipSwish, ((4,),)),
    "LipschitzConv2d": Case(lambda: f.LipschitzConv2d(4, 3, size=IMAGE[1:]), (IMAGE,)),
    "LipschitzConvNet": Case(lambda: f.LipschitzConvNet(4, IMAGE[1:], 8), (IMAGE,)),
    "LipschitzLinear": Case(lambda: f.LipschitzLinear(4, 3), ((4,),)),
    "LipschitzMLP": Case(lambda: f.LipschitzMLP(4, (8, 8)), ((4,),)),
    "LogisticMixtureCoupling": Case(lambda: f.LogisticMixtureCoupling(f.MLP(2, 2 * (2 + 3 * 3), (8,)), 3), ((4,),)),
    "Logit": Case(f.Logit, ((4,),), as_input=lambda x, number: torch.special.ndtr(x)),
    "MLPField": Case(lambda: f.MLPField((4, 8, 4)), ((4,),)),
    "MaskedAffineAutoregressive": Case(
        lambda: f.MaskedAffineAutoregressive(4, (8, 8), context_features=3), ((4,), (3,))
    ),
    "MaskedAutoregressive": Case(
        lambda: f.MaskedAutoregressive(
            f.MaskedMLP(4, f.DeepSigmoidal(4).parameters_per_element, (8,)), f.DeepSigmoidal(4)
        ),
        ((4,),),
    ),
    "MaskedConv2d": Case(lambda: f.MaskedConv2d(4, 3, 3, "B"), (IMAGE,)),
    "MaskedLinear": Case(lambda: f.MaskedLinear(torch.ones(4, 4).tril()), ((4,),)),
    "MaskedMLP": Case(lambda: f.MaskedMLP(4, 3, (8,)), ((4,),)),
    "MaskedSplineAutoregressive": Case(lambda: f.MaskedSplineAutoregressive(4, bins=4, width=8, blocks=1), ((4,),)),
    "MonotoneIntegral": Case(lambda: f.MonotoneIntegral(3, (6,), intervals=8), ((4,), (4, 4))),
    "MonotoneIntegral, autoregressive": Case(
        lambda: f.MaskedAutoregressive(f.MaskedMLP(4, 4, (8,)), f.MonotoneIntegral(3, (6,), intervals=8)), ((4,),)
    ),
    "MultiScale": Case(
        lambda: f.MultiScale(
            [f.FlowSequential(f.Squeeze2d(), f.ActNorm(16)), f.FlowSequential(f.InvertibleConv1x1(8))],
            [(16, 2, 2), (8, 2, 2)],
        ),
        (IMAGE,),
    ),
    "Permutation": Case(lambda: f.Permutation([2, 0, 3, 1]), ((4,),)),
    "Planar": Case(lambda: f.Planar(4), ((4,),)),
    "Planar, amortized": Case(lambda: f.Planar(4, amortized=True), ((4,), (9,))),
    "Radial": Case(lambda: f.Radial(4), ((4,),)),
    "RationalQuadraticSpline": Case(lambda: f.RationalQuadraticSpline((4,), 4), ((4,),)),
    "ResMADE": Case(lambda: f.ResMADE(4, 3, 8, 1), ((4,),)),
    "ResidualConvNet": Case(lambda: f.ResidualConvNet(4, 3, 8, 1), (IMAGE,)),
    "ResidualMLP": Case(lambda: f.ResidualMLP(4, 3, 8, 1, context_features=3), ((4,), (3,))),
    "RowLSTM": Case(lambda: f.RowLSTM(4, 6), (IMAGE,)),
    "SOSPolynomial": Case(lambda: f.SOSPolynomial(2, 2), ((4,), (4, f.SOSPolynomial(2, 2).parameters_per_element))),
    "SplineCoupling": Case(lambda: f.SplineCoupling(_spline_net(2, 2), f.SplineTransform(4)), ((4,),)),
    "SplineCoupling with a mask": Case(
        lambda: f.SplineCoupling(_spline_net(4, 4), f.SplineTransform(4), mask=_of_mask()), ((4,),)
    ),
    "SplineTransform": Case(
        lambda: f.SplineTransform(4, kind="cubic"),
        ((4,), (4, f.SplineTransform(4, kind="cubic").parameters_per_element)),
    ),
    "Squeeze2d": Case(lambda: f.Squeeze2d("realnvp"), (IMAGE,)),
    "Sylvester": Case(lambda: f.Sylvester(4, rank=2), ((4,),)),
    "Sylvester, householder": Case(lambda: f.Sylvester(4, "householder", reflections=2), ((4,),)),
    "VariationalDequantization": Case(
        lambda: f.VariationalDequantization(f.AffineCoupling(f.MLP(2, 4, (8,), context_features=4)), levels=4),
        ((4,), (4,)),
        as_input=_levels_and_noise,
    ),
    "VectorQuantizer": Case(lambda: f.VectorQuantizer(7, 4), ((4, 3),)),
    "VectorQuantizer with a learned codebook": Case(lambda: f.VectorQuantizer(7, 4, decay=None), ((4, 3),)),
    "ZeroConv2d": Case(lambda: f.ZeroConv2d(4, 3, context_features=3), (IMAGE, (3,))),
}
