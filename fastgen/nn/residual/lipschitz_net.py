"""Networks with a Lipschitz constant below 1, for the blocks of residual flows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastgen.nn.networks.mlp import zero_
from fastgen.nn.residual.lip_swish import SHRINK, LipSwish
from fastgen.nn.residual.lipschitz import LipschitzConv2d, LipschitzLayer, LipschitzLinear
from fastgen.ops.conv_field import ConvField
from fastgen.ops.dense_field import DenseField
from fastgen.ops.field import Field
from fastgen.ops.precision import in_float32

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "lip_swish": LipSwish,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}
"""Activations whose slopes are at most 1 in size."""


class LipschitzNet(nn.Module):
    """The base of ``LipschitzMLP`` and ``LipschitzConvNet``: layers with a bound, activations between or before them.

    ``forward(x, context=None)`` is the network g; ``at(context)`` is the same g of x alone, its bounded weights found
    once: what solves for x, or asks for derivatives, calls that.
    """

    field: ClassVar[type[Field]]

    def __init__(
        self,
        layers: Sequence[LipschitzLayer],
        activation: str,
        pre_activation: bool,
        context_features: int | None,
        zero: bool,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}")
        super().__init__()
        self.layers, self.activation, self.pre_activation = nn.ModuleList(layers), activation, pre_activation
        count = len(layers) - 1 + pre_activation
        self.activations = nn.ModuleList(ACTIVATIONS[activation]() for _ in range(count))
        shifted = layers[0].weight.shape[1 if pre_activation else 0]
        self.shift = None if context_features is None else nn.Linear(context_features, shifted, bias=False)
        if zero:
            zero_(layers[-1])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        (wide,) = in_float32(x)
        return self.at(context)(wide).to(x.dtype)

    def at(self, context: Tensor | None = None) -> Field:
        """g(., context): a field of ``fastgen.ops``, whose derivatives are fast, in float32 at least."""
        shift = None
        if context is not None:
            shift = self.shift(context)
            shift = shift.reshape(*shift.shape, *[1] * (self.layers[0].weight.dim() - 2))
        weights = [*in_float32(*(layer.weight for layer in self.layers))]
        scales = [layer.scale() for layer in self.layers]
        biases = [*in_float32(*(layer.bias for layer in self.layers))]
        if self.pre_activation:  # after a layer that changes nothing
            features = len(weights[-1])
            identity = torch.eye(features, dtype=weights[0].dtype, device=weights[0].device)
            weights.insert(0, identity.reshape(features, features, *[1] * (weights[0].dim() - 2)))
            scales.insert(0, scales[0].new_ones(()))
            biases.insert(0, torch.zeros_like(biases[-1]))
        if shift is not None:
            biases[0] = biases[0].reshape(shift.shape[1:]) + shift
        folded = self.activation == "lip_swish"
        if folded:
            for i, activation in enumerate(self.activations):
                sharpness = activation.sharpness
                scales[i], biases[i] = scales[i] * sharpness, biases[i] * sharpness
                scales[i + 1] = scales[i + 1] / (SHRINK * sharpness)
        weights = [weight * scale for weight, scale in zip(weights, scales, strict=True)]
        return self.field(weights, biases, "swish" if folded else self.activation)


class LipschitzMLP(LipschitzNet):
    """A multilayer perceptron g with ``|g(x) - g(y)| <= coefficient^layers |x - y|``, from [N, D] to [N, D].

    The layers are ``LipschitzLinear``. A context moves the input of the first activation, by a linear map of it, and
    leaves the constant, which is of x, as it is. LipSwish is folded into the weights of its two neighbours,
    ``lip_swish(x) = swish(b x) / (1.1 b)``.

    Args:
        features: D.
        hidden: widths of the hidden layers.
        activation: "lip_swish", "elu", "softplus" or "tanh".
        pre_activation: begin with an activation.
        context_features: width of a context [N, context_features]; None has none.
        zero: begin with g = 0.
        norm: exponent of the norm of x and of g: 1, 2 or ``math.inf``.
        coefficient, iterations, tolerance: of every layer; see ``LipschitzLinear``.

    Raises:
        ValueError: an unknown activation, no hidden layer without ``pre_activation``, what ``LipschitzLinear`` refuses.

    Reference: Chen, Behrmann, Duvenaud, Jacobsen, "Residual flows for invertible generative modeling", NeurIPS 2019.

    Example:
        >>> net = LipschitzMLP(2, (16, 16), coefficient=0.9).eval()
        >>> x = torch.randn(2, 2)
        >>> g = net(x)
        >>> bool((g[0] - g[1]).norm() < 0.9 * (x[0] - x[1]).norm())
        True
    """

    field = DenseField

    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (128, 128, 128, 128),
        *,
        activation: str = "lip_swish",
        pre_activation: bool = False,
        context_features: int | None = None,
        zero: bool = True,
        norm: float = 2,
        coefficient: float = 0.97,
        iterations: int | None = 5,
        tolerance: float = 1e-3,
    ) -> None:
        widths = (features, *hidden, features)
        if min(widths) < 1 or not (hidden or pre_activation):
            raise ValueError(
                f"features and each of hidden, one or more, must be at least 1, got {features} and {tuple(hidden)}"
            )
        bound = {"coefficient": coefficient, "iterations": iterations, "tolerance": tolerance}
        layers = [LipschitzLinear(a, b, domain=norm, codomain=norm, **bound) for a, b in pairwise(widths)]
        super().__init__(layers, activation, pre_activation, context_features, zero)


class LipschitzConvNet(LipschitzNet):
    """A convolutional g with ``|g(x) - g(y)| <= coefficient^layers |x - y|``, from [N, C, H, W] to the same.

    The layers are ``LipschitzConv2d``; a context moves each channel of the input of the first activation.

    Args:
        channels: C.
        size: (H, W).
        hidden: channels between the layers.
        kernels: of the layers, odd.
        activation, pre_activation, context_features, zero, norm, coefficient, iterations, tolerance: as of
            ``LipschitzMLP``.

    Raises:
        ValueError: an unknown activation, no two kernels, what ``LipschitzConv2d`` refuses.

    References: Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen, "Invertible residual networks", ICML 2019; Chen et al.,
    "Residual flows for invertible generative modeling", NeurIPS 2019.

    Example:
        >>> LipschitzConvNet(3, (8, 8), hidden=16)(torch.randn(5, 3, 8, 8)).shape
        torch.Size([5, 3, 8, 8])
    """

    field = ConvField

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        hidden: int = 512,
        kernels: Sequence[int] = (3, 1, 3),
        *,
        activation: str = "lip_swish",
        pre_activation: bool = False,
        context_features: int | None = None,
        zero: bool = True,
        norm: float = 2,
        coefficient: float = 0.97,
        iterations: int | None = 5,
        tolerance: float = 1e-3,
    ) -> None:
        if min(channels, hidden) < 1 or len(kernels) < 2:
            raise ValueError(
                f"channels and hidden must be at least 1 and kernels at least 2 sizes, got {channels}, {hidden} and "
                f"{tuple(kernels)}"
            )
        widths = (channels, *[hidden] * (len(kernels) - 1), channels)
        bound = {"coefficient": coefficient, "iterations": iterations, "tolerance": tolerance}
        layers = [
            LipschitzConv2d(a, b, kernel, size=size, domain=norm, codomain=norm, **bound)
            for (a, b), kernel in zip(pairwise(widths), kernels, strict=True)
        ]
        super().__init__(layers, activation, pre_activation, context_features, zero)
