"""Conditioner networks on vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """A plain multilayer perceptron: ``forward(x, context=None)`` maps [..., inputs] to [..., outputs].

    Args:
        inputs, outputs: widths.
        hidden: widths of the hidden layers; none leaves one linear map.
        activation: between the layers.
        context_features: width of a context that goes in beside x; None has none.
        zero: begin with outputs of 0.

    Example:
        >>> MLP(3, 4, hidden=(16, 16))(torch.randn(5, 3)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: Sequence[int] = (64, 64),
        *,
        activation: Callable[[Tensor], Tensor] = F.relu,
        context_features: int | None = None,
        zero: bool = False,
    ) -> None:
        super().__init__()
        widths = [inputs + (context_features or 0), *hidden, outputs]
        self.activation = activation
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        if zero:
            zero_(self.layers[-1])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.layers[0](x if context is None else torch.cat((x, context), -1))
        for layer in self.layers[1:]:
            x = layer(self.activation(x))
        return x


class ResidualMLP(nn.Module):
    """Residual blocks of two linear layers: ``forward(x, context=None)`` maps [..., inputs] to [..., outputs].

    A context goes in beside x, and gates what every block adds: ``x + block(x) sigmoid(linear(context))``.

    Args:
        inputs, outputs: widths.
        width: of the blocks.
        blocks: their number.
        context_features: width of a context; None has none.
        dropout: between a block's two layers.
        zero: begin with outputs of 0.

    Reference: Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", NeurIPS 2019.

    Example:
        >>> ResidualMLP(3, 4, width=16)(torch.randn(5, 3)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 64,
        blocks: int = 2,
        *,
        context_features: int | None = None,
        dropout: float = 0.0,
        zero: bool = False,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(inputs + (context_features or 0), width)
        self.blocks = nn.ModuleList(_Block(width, context_features, dropout) for _ in range(blocks))
        self.last = nn.Linear(width, outputs)
        if zero:
            zero_(self.last)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.first(x if context is None else torch.cat((x, context), -1))
        for block in self.blocks:
            x = x + block(x, context)
        return self.last(x)


class _Block(nn.Module):
    def __init__(self, width: int, context_features: int | None, dropout: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.gate = None if context_features is None else nn.Linear(context_features, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        x = self.second(self.dropout(F.relu(self.first(F.relu(x)))))
        return x if self.gate is None else x * torch.sigmoid(self.gate(context))


def zero_(layer: nn.Linear | nn.Conv2d) -> None:
    """Makes a layer's weight and bias 0."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
