"""The masked autoencoder that gives each feature's parameters from the features before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgen.nn.masked_linear import MaskedLinear
from fastgen.reference.sequential_affine import ACTIVATIONS, cyclic_degrees, masks_of


class MADE(nn.Module):
    """Masked linear layers: ``forward(x, context=None)`` returns (mu, alpha), each [N, D].

    The numbers for a feature depend on the features before it in ``order``, and on the context. A unit of degree d sees
    units of degree at most d; the outputs of the feature of degree d see units of degree below d.

    Args:
        features: D.
        hidden: widths of the hidden layers, one at least.
        activation: "relu", "tanh", "sigmoid" or "elu".
        order: "natural", "reversed", or the features in the order in which they depend on one another.
        hidden_degrees: "sequential" (1, ..., D - 1 over and over) or "random", drawn once, when the layer is made.
        context_features: width of a context, whose linear map is added to the first hidden layer; None has no context.

    Raises:
        ValueError: an unknown name; an order that is no permutation; no hidden layer; a context where there should be
            none, or none where there should be one.

    Reference: Germain, Gregor, Murray, Larochelle, "MADE: masked autoencoder for distribution estimation", ICML 2015.

    Example:
        >>> made = MADE(5, hidden=(32, 32), order="reversed")
        >>> mu, alpha = made(torch.randn(8, 5))
        >>> mu.shape, alpha.shape
        (torch.Size([8, 5]), torch.Size([8, 5]))
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (512, 512),
        *,
        activation: str = "relu",
        order: str | Sequence[int] | Tensor = "natural",
        hidden_degrees: str = "sequential",
        context_features: int | None = None,
    ) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features is {features}; it must be at least 1")
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden is {tuple(hidden)}; it must have the width of one layer at least, each 1 or more")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; it must be one of {', '.join(map(repr, ACTIVATIONS))}")
        self.features, self.activation, self.context_features = features, activation, context_features
        degrees = [_feature_degrees(features, order), *_hidden_degrees(features, hidden, hidden_degrees)]
        for i, of in enumerate(degrees):
            self.register_buffer(f"degrees_{i}", of)
        self.layers = nn.ModuleList(MaskedLinear(mask) for mask in masks_of(degrees))
        self.context = None if context_features is None else nn.Linear(context_features, hidden[0], bias=False)

    @property
    def degrees(self) -> list[Tensor]:
        """Of the features, then of each hidden layer."""
        return [getattr(self, f"degrees_{i}") for i in range(len(self.layers))]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [..., D] to mu and alpha, each [..., D]."""
        if x.shape[-1:] != (self.features,):
            raise ValueError(f"x has shape {tuple(x.shape)}; it must be [..., {self.features}]")
        offset = self.offset(context)
        hidden = self.layers[0](x)
        if offset is not None:
            hidden = hidden + offset
        for layer in self.layers[1:]:
            hidden = layer(ACTIVATIONS[self.activation](hidden))
        mu, alpha = hidden.chunk(2, -1)
        return mu, alpha

    def offset(self, context: Tensor | None) -> Tensor | None:
        """What the context adds to the first hidden layer, [..., hidden[0]]."""
        if (context is None) != (self.context is None):
            wanted = "None" if self.context is None else f"[..., {self.context_features}]"
            given = "None" if context is None else f"a tensor of shape {tuple(context.shape)}"
            raise ValueError(
                f"context is {given}; it must be {wanted}, as context_features was {self.context_features}"
            )
        return None if self.context is None else self.context(context)

    def extra_repr(self) -> str:
        return f"{self.features}, activation={self.activation!r}"


def _feature_degrees(features: int, order: str | Sequence[int] | Tensor) -> Tensor:
    if isinstance(order, str):
        if order not in ("natural", "reversed"):
            raise ValueError(f"order is {order!r}; it must be 'natural', 'reversed' or a permutation")
        indices = list(range(features))[:: -1 if order == "reversed" else 1]
    else:
        indices = [int(i) for i in order]
    if sorted(indices) != list(range(features)):
        raise ValueError(f"order is {indices}; it must have every number below {features} once")
    return torch.tensor(indices).argsort() + 1


def _hidden_degrees(features: int, hidden: Sequence[int], how: str) -> list[Tensor]:
    if how == "sequential":
        return [cyclic_degrees(features, width) for width in hidden]
    if how != "random":
        raise ValueError(f"hidden_degrees is {how!r}; it must be 'sequential' or 'random'")
    found, least = [], min(1, features - 1)
    for width in hidden:
        found.append(torch.randint(least, max(least + 1, features), (width,)))
        least = int(found[-1].min())  # a unit of lower degree would see nothing of the layer before
    return found
