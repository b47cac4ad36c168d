"""Masked networks that give each feature's parameters from the features before it: MADE and its residual form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from fastgen.nn.autoregressive.masked_linear import MaskedLinear
from fastgen.ops.arguments import check_integers
from fastgen.reference.sequential_affine import ACTIVATIONS, cyclic_degrees, masks_of

Order = str | Sequence[int] | Tensor


class MaskedNetwork(nn.Module):
    """The base of masked networks: masked linear maps, the degrees of their units, and what a context adds to them.

    A unit of degree d sees units of degree at most d; the outputs for the feature of degree d see units of degree below
    d. Units of degree 0 see no feature; where there is a context they carry it to the outputs of the first feature.
    Degrees and masks are in the state dict: a network that was saved with others computes what it computed then.

    A subclass says in ``forward`` how the outputs are laid out, and may say in ``run`` how the maps follow one another.

    Args:
        degrees: of the features, then of each hidden layer.
        masks: of every linear map.
        activation: of the hidden layers, by name.
        context_features: width of a context; None has none.
        conditioned: numbers of the linear maps whose outputs a linear map of the context is added to.
    """

    def __init__(
        self,
        degrees: Sequence[Tensor],
        masks: Sequence[Tensor],
        activation: str,
        context_features: int | None,
        conditioned: Sequence[int] = (0,),
    ) -> None:
        super().__init__()
        self.features, self.activation, self.context_features = len(degrees[0]), activation, context_features
        for i, units in enumerate(degrees):
            self.register_buffer(f"degrees_{i}", units)
        self.layers = nn.ModuleList(MaskedLinear(mask) for mask in masks)
        self._conditioned = {i: self.layers[i].out_features for i in conditioned}
        total = sum(self._conditioned.values())
        self.context = None if context_features is None else nn.Linear(context_features, total, bias=False)

    @property
    def degrees(self) -> list[Tensor]:
        """The degrees of the inputs of each linear map: the features', then each hidden layer's."""
        return [getattr(self, f"degrees_{i}") for i in range(len(self.layers))]

    def run(self, x: Tensor, linear: Callable[[int, Tensor], Tensor]) -> Tensor:
        """The outputs from x, where ``linear`` applies the linear map of a number, each once, in their order.

        Between the maps every unit is treated alone, so that this also runs on the units of one degree at a time.
        """
        x = linear(0, x)
        for i in range(1, len(self.layers)):
            x = linear(i, ACTIVATIONS[self.activation](x))
        return x

    def offset(self, context: Tensor | None) -> Tensor | None:
        """Returns what the context adds to the maps that it goes into, one after the other; None without a context."""
        if (context is None) != (self.context is None):
            wanted = "None" if self.context is None else f"[..., {self.context_features}]"
            given = "None" if context is None else f"a tensor of shape {tuple(context.shape)}"
            raise ValueError(f"context must be {wanted} for context_features={self.context_features}, got {given}")
        return None if self.context is None else self.context(context)

    def offsets(self, context: Tensor | None) -> dict[int, Tensor]:
        """``offset`` by the number of the map."""
        offset = self.offset(context)
        if offset is None:
            return {}
        return dict(zip(self._conditioned, offset.split(list(self._conditioned.values()), -1), strict=True))

    def outputs(self, x: Tensor, context: Tensor | None) -> Tensor:
        """x [..., D] to what the last map returns."""
        if x.shape[-1:] != (self.features,):
            raise ValueError(f"x must have shape [..., {self.features}], got {tuple(x.shape)}")
        offsets = self.offsets(context)

        def linear(i: int, x: Tensor) -> Tensor:
            return self.layers[i](x) + offsets[i] if i in offsets else self.layers[i](x)

        return self.run(x, linear)

    def extra_repr(self) -> str:
        return f"{self.features}, activation={self.activation!r}"


class MADE(MaskedNetwork):
    """Masked linear layers: ``forward(x, context=None)`` returns (mu, alpha), each [N, D].

    The numbers for a feature depend on the features before it in ``order``, and on the context. A unit of degree d sees
    units of degree at most d; the outputs of the feature of degree d see units of degree below d.

    Args:
        features: D.
        hidden: widths of the hidden layers, one at least.
        activation: "relu", "tanh", "sigmoid" or "elu".
        order: "natural", "reversed", or the features in the order in which they depend on one another.
        hidden_degrees: "sequential" (1, ..., D - 1 over and over) or "random", drawn once, when the layer is made.
            With a context every hidden layer also has units of degree 0 (0, ..., D - 1 over and over, or the first
            unit): they see the context alone, and through them the first feature depends on it.
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
        order: Order = "natural",
        hidden_degrees: str = "sequential",
        context_features: int | None = None,
    ) -> None:
        degrees = _degrees_of(features, hidden, activation, order, hidden_degrees, context_features is not None)
        super().__init__(degrees, masks_of(degrees), activation, context_features)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [..., D] to mu and alpha, each [..., D]."""
        mu, alpha = self.outputs(x, context).chunk(2, -1)
        return mu, alpha


class MaskedMLP(MaskedNetwork):
    """A ``MADE`` of any number of outputs a feature: ``forward(x, context=None)`` maps [..., D] to [..., D, P].

    Args:
        features: D.
        outputs: P.
        hidden, activation, order, hidden_degrees, context_features: as ``MADE`` has them.

    Raises:
        ValueError: ``outputs`` below 1, and what ``MADE`` refuses.

    Reference: Germain, Gregor, Murray, Larochelle, "MADE: masked autoencoder for distribution estimation", ICML 2015.

    Example:
        >>> MaskedMLP(5, 7, hidden=(32, 32))(torch.randn(8, 5)).shape
        torch.Size([8, 5, 7])
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        hidden: Sequence[int] = (512, 512),
        *,
        activation: str = "relu",
        order: Order = "natural",
        hidden_degrees: str = "sequential",
        context_features: int | None = None,
    ) -> None:
        degrees = _degrees_of(features, hidden, activation, order, hidden_degrees, context_features is not None)
        super().__init__(degrees, _masks_of(degrees, outputs), activation, context_features)
        self.outputs_per_feature = outputs

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x [..., D] to [..., D, P]."""
        return self.outputs(x, context).unflatten(-1, (self.features, self.outputs_per_feature))


class ResMADE(MaskedNetwork):
    """A ``MADE`` of residual blocks: ``forward(x, context=None)`` maps [..., D] to [..., D, P].

    Every block is two masked linear maps, each after the activation, and what they make is added to their input. All
    hidden units of a number have the same degree in every layer, so what is added sees no more than what is there.

    Args:
        features: D.
        outputs: P.
        width: of every hidden layer.
        blocks: their number.
        activation, order, hidden_degrees: as ``MADE`` has them.
        context_features: width of a context, whose linear maps are added to the first hidden layer and within each
            block; None has no context.
        dropout: before the second map of each block.

    Raises:
        ValueError: ``outputs`` or ``width`` below 1, ``blocks`` below 0, and what ``MADE`` refuses.

    References: Nash, Durkan, "Autoregressive energy machines", ICML 2019; Durkan, Bekasov, Murray, Papamakarios,
    "Neural spline flows", NeurIPS 2019.

    Example:
        >>> ResMADE(5, 7, width=32)(torch.randn(8, 5)).shape
        torch.Size([8, 5, 7])
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        width: int = 256,
        blocks: int = 2,
        *,
        activation: str = "relu",
        order: Order = "natural",
        hidden_degrees: str = "sequential",
        context_features: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        check_integers(width=width)
        check_integers(0, blocks=blocks)
        conditional = context_features is not None
        first, second = _degrees_of(features, (width,), activation, order, hidden_degrees, conditional)
        degrees = [first, *[second] * (1 + 2 * blocks)]
        conditioned = [0, *range(1, 2 * blocks, 2)]
        super().__init__([first, second], _masks_of(degrees, outputs), activation, context_features, conditioned)
        self.outputs_per_feature, self.blocks = outputs, blocks
        self.dropout = nn.Dropout(dropout)

    @property
    def degrees(self) -> list[Tensor]:
        return [self.degrees_0, *[self.degrees_1] * (1 + 2 * self.blocks)]

    def run(self, x: Tensor, linear: Callable[[int, Tensor], Tensor]) -> Tensor:
        activation = ACTIVATIONS[self.activation]
        x = linear(0, x)
        for i in range(1, 2 * self.blocks, 2):
            x = x + linear(i + 1, self.dropout(activation(linear(i, activation(x)))))
        return linear(len(self.layers) - 1, x)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x [..., D] to [..., D, P]."""
        return self.outputs(x, context).unflatten(-1, (self.features, self.outputs_per_feature))


def _degrees_of(
    features: int, hidden: Sequence[int], activation: str, order: Order, hidden_degrees: str, conditional: bool
) -> list[Tensor]:
    """Returns the degrees of the features, then of each hidden layer; raises ValueError for what makes no network."""
    if features < 1:
        raise ValueError(f"features must be at least 1, got {features}")
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden must have the width of one layer at least, each 1 or more, got {tuple(hidden)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}")
    return [_feature_degrees(features, order), *_hidden_degrees(features, hidden, hidden_degrees, conditional)]


def _masks_of(degrees: Sequence[Tensor], outputs: int) -> list[Tensor]:
    """For every linear map; the last has ``outputs`` rows for the first feature, then those for the second, and on."""
    if outputs < 1:
        raise ValueError(f"outputs must be at least 1, got {outputs}")
    inner = [after[:, None] >= before for before, after in pairwise(degrees)]
    return [*inner, degrees[0].repeat_interleave(outputs)[:, None] > degrees[-1]]


def _feature_degrees(features: int, order: Order) -> Tensor:
    if isinstance(order, str):
        if order not in ("natural", "reversed"):
            raise ValueError(f"order must be 'natural', 'reversed' or a permutation, got {order!r}")
        indices = list(range(features))[:: -1 if order == "reversed" else 1]
    else:
        indices = [int(i) for i in order]
    if sorted(indices) != list(range(features)):
        raise ValueError(f"order must have every number below {features} once, got {indices}")
    return torch.tensor(indices).argsort() + 1


def _hidden_degrees(features: int, hidden: Sequence[int], how: str, conditional: bool) -> list[Tensor]:
    lowest = 0 if conditional else min(1, features - 1)
    if how == "sequential":
        return [cyclic_degrees(features, width, lowest) for width in hidden]
    if how != "random":
        raise ValueError(f"hidden_degrees must be 'sequential' or 'random', got {how!r}")
    found = []
    for width in hidden:
        degrees = torch.randint(lowest, max(lowest + 1, features), (width,), device="cpu")
        if conditional:
            degrees[0] = 0  # in every layer a unit by which the first feature sees the context
        found.append(degrees.to(torch.get_default_device()))
        lowest = int(degrees.min())  # a unit of lower degree would see nothing of the layer before
    return found
