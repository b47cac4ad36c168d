"""One step of Flow++: normalise, mix the channels of each half, transform one half given the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgen.nn.coupling.logistic_mixture_coupling import LogisticMixtureCoupling
from fastgen.nn.flow.flow_layer import FlowLayer
from fastgen.nn.flow.flow_sequential import FlowSequential
from fastgen.nn.linear.invertible_conv1x1 import InvertibleConv1x1
from fastgen.nn.networks.flow_plus_plus_net import GatedAttentionNet


class FlowPlusPlusStep(FlowSequential):
    """A step of Flow++ on [N, 2 C, H, W]: ``forward(x, context=None)`` and ``inverse`` return (y, log_det [N]).

    Each half of the channels has its actnorm and its invertible 1 x 1 convolution; then a ``LogisticMixtureCoupling``
    with a ``GatedAttentionNet`` transforms the second half, or with ``swap`` the first. After ``CheckerboardSplit``
    the halves are the colours of a checkerboard.

    Args:
        shape: (2 C, H, W).
        filters, blocks, heads, context_features, dropout: of the ``GatedAttentionNet``.
        components: logistics in a mixture.
        swap: transform the first half.

    Raises:
        ValueError: an odd number of channels; filters that are no multiple of the heads; fewer than one component.

    Reference: Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", ICML 2019.

    Example:
        >>> step = FlowPlusPlusStep((4, 8, 8), filters=16, blocks=1, components=4)
        >>> x = torch.randn(5, 4, 8, 8)
        >>> y, log_det = step(x)
        >>> torch.allclose(step.inverse(y)[0], x, atol=1e-4)
        True
    """

    def __init__(
        self,
        shape: Sequence[int],
        filters: int = 96,
        blocks: int = 10,
        components: int = 32,
        *,
        heads: int = 4,
        context_features: int | None = None,
        dropout: float = 0.0,
        swap: bool = False,
    ) -> None:
        channels, *size = shape
        if channels % 2:
            raise ValueError(f"shape must have an even number of channels, to be halved, got {tuple(shape)}")
        half = channels // 2
        net = GatedAttentionNet(
            (half, *size),
            (2 + 3 * components) * half,
            filters,
            blocks,
            heads=heads,
            context_features=context_features,
            dropout=dropout,
        )
        super().__init__(
            Halves(InvertibleConv1x1(half, act_norm=True), InvertibleConv1x1(half, act_norm=True)),
            LogisticMixtureCoupling(net, components, swap=swap),
        )


class Halves(FlowLayer):
    """A flow layer for each half of the channels: ``forward(x)`` and ``inverse(y)`` return (y, log_det [N]).

    Args:
        first, second: flow layers on [N, C/2, ...] without a context.

    Raises:
        ValueError: an odd number of channels.

    Example:
        >>> from fastgen.nn import ActNorm
        >>> Halves(ActNorm(2), ActNorm(2))(torch.randn(5, 4, 8, 8))[0].shape
        torch.Size([5, 4, 8, 8])
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = _halves(x)
        return _joined(self.first(first), self.second(second))

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        first, second = _halves(y)
        return _joined(self.first.inverse(first), self.second.inverse(second))


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.dim() < 2 or x.shape[1] % 2:
        raise ValueError(f"x must have shape [N, C, ...] with C even, got {tuple(x.shape)}")
    first, second = x.chunk(2, 1)
    return first, second


def _joined(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat((first[0], second[0]), 1), first[1] + second[1]
