"""Variational dequantization: the noise that turns levels into real numbers is drawn by a conditional flow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgen.distributions.standard import standard_logistic_log_prob, standard_normal_log_prob
from fastgen.nn.coupling.flow_plus_plus_step import FlowPlusPlusStep
from fastgen.nn.flow.flow_sequential import FlowSequential, Inverse
from fastgen.nn.networks.flow_plus_plus_net import GatedConv, as_map
from fastgen.nn.reshape.checkerboard_split import CheckerboardSplit
from fastgen.ops.arguments import check_integers


class VariationalDequantization(nn.Module):
    """Noise u in [0, 1) for integer levels v from a flow given v: ``forward(levels, noise, context=None)``.

    A standard normal e goes through the flow, and what comes out through a sigmoid::

        u = sigmoid(y),   y = flow(e, features(v / L - 1/2, context))
        log q(u | v) = log N(e; 0, 1) - log |dy/de| - sum log u (1 - u)

    ``log p((v + u) / L) - D log L - log q(u | v)`` is then, in the mean, a lower bound of the log-probability of v,
    whatever the flow; uniform noise is the case q = 1. ``FlowModel.elbo`` computes it with ``dequantization`` set to
    this module; ``VariationalDequantization.of_images`` makes the one of Flow++.

    Args:
        flow: a flow layer on [N, *event_shape] that takes a context.
        levels: L, 2 or more.
        features: a network ``features(x, context)`` of x [N, *event_shape] in [-1/2, 1/2) whose output is the flow's
            context; None flattens x and puts the context [N, K] behind it: D + K features.

    Raises:
        ValueError: fewer than two levels.

    Reference: Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", ICML 2019, section 3.1.

    Example:
        >>> from fastgen.nn import MLP, AffineCoupling
        >>> flow = AffineCoupling(MLP(1, 2, context_features=2))
        >>> u, log_q = VariationalDequantization(flow, levels=4)(torch.tensor([[0, 3]]), torch.rand(1, 2))
        >>> u.shape, log_q.shape
        (torch.Size([1, 2]), torch.Size([1]))
    """

    def __init__(self, flow: nn.Module, levels: int, features: nn.Module | None = None) -> None:
        check_integers(2, levels=levels)
        super().__init__()
        self.flow, self.levels, self.features = flow, levels, features

    @classmethod
    def of_images(
        cls,
        event_shape: Sequence[int],
        levels: int,
        *,
        couplings: int = 4,
        filters: int = 96,
        blocks: int = 2,
        components: int = 32,
        heads: int = 4,
        features: int = 32,
        context_features: int | None = None,
        dropout: float = 0.0,
    ) -> VariationalDequantization:
        """The dequantization of Flow++ for images [C, H, W], by default that for CIFAR-10.

        Args:
            couplings: ``FlowPlusPlusStep``s on the two colours of a checkerboard, which take turns.
            filters, blocks, components, heads: of each of them.
            features: channels of ``CheckerboardFeatures``, which every coupling is given.
            context_features: width of a context; None has none.
            dropout: of all networks.

        Raises:
            ValueError: an event that is no image of even width, or a number out of range.
        """
        if len(event_shape) != 3 or event_shape[2] % 2:
            raise ValueError(
                f"event_shape must be (channels, height, width) with an even width, got {tuple(event_shape)}"
            )
        channels, height, width = event_shape
        steps = [
            FlowPlusPlusStep(
                (2 * channels, height, width // 2),
                filters,
                blocks,
                components,
                heads=heads,
                context_features=features,
                dropout=dropout,
                swap=i % 2 == 1,
            )
            for i in range(couplings)
        ]
        split = CheckerboardSplit()
        flow = FlowSequential(split, *steps, Inverse(split))
        return cls(flow, levels, CheckerboardFeatures(channels, features, context_features, dropout=dropout))

    def forward(self, levels: Tensor, noise: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Levels and uniform noise of their shape to (u of that shape and the noise's dtype, log q(u | v) [N]).

        log q is float32 for noise of 32 bits or fewer, else of its dtype.

        Raises:
            ValueError: noise of another shape than levels, or not floating point.
        """
        if noise.shape != levels.shape or not noise.is_floating_point():
            raise ValueError(
                f"noise must be floating point of the shape of levels, {tuple(levels.shape)}, got {noise.dtype} "
                f"{tuple(noise.shape)}"
            )
        least = torch.finfo(noise.dtype).eps / 4  # half of the step of torch.rand, which draws 0 too
        wide = noise.to(torch.promote_types(noise.dtype, torch.float32))
        normal = torch.special.ndtri(wide.clamp(least, 1 - 2 * least)).to(noise.dtype)
        y, log_det = self.flow(normal, self._features_of(levels, noise.dtype, context))
        u = torch.sigmoid(y).clamp(max=1 - 2 * least)
        return u.to(noise.dtype), standard_normal_log_prob(normal) - log_det - standard_logistic_log_prob(y)

    def log_prob(self, u: Tensor, levels: Tensor, context: Tensor | None = None) -> Tensor:
        """log q(u | v) [N] of a given u in (0, 1), by the inverse of the flow."""
        y = torch.logit(u)
        normal, log_det = self.flow.inverse(y, self._features_of(levels, u.dtype, context))
        return standard_normal_log_prob(normal) + log_det - standard_logistic_log_prob(y)

    def _features_of(self, levels: Tensor, dtype: torch.dtype, context: Tensor | None) -> Tensor:
        x = levels.to(dtype) / self.levels - 0.5
        if self.features is not None:
            return self.features(x, context)
        return x.flatten(1) if context is None else torch.cat((x.flatten(1), context), 1)

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


class CheckerboardFeatures(nn.Module):
    """The context of the couplings of Flow++'s dequantization: [N, C, H, W] to a map [N, features, H, W/2].

    The two colours of a checkerboard side by side in the channels, a 3 x 3 convolution and three gated residual
    convolutions, into each of which a context [N, K] goes too.
    """

    def __init__(
        self, channels: int, features: int = 32, context_features: int | None = None, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.split = CheckerboardSplit()
        self.first = nn.Conv2d(2 * channels, features, 3, padding=1)
        self.blocks = nn.ModuleList(GatedConv(features, context_features or 0, dropout=dropout) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = as_map(context)
        x = self.first(self.split(x)[0])
        for block in self.blocks:
            x = block(x, context)
        return x
