"""Vector fields of continuous flows, as networks that fastgen knows the derivatives of."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from fastgen.ops.dense_field import DenseField
from fastgen.ops.field import Field
from fastgen.ops.precision import without_autocast
from fastgen.reference.hutchinson_trace import ACTIVATIONS

TIMES = ("none", "concat", "concat-squash")


class FieldNet(nn.Module):
    """The base of a field's networks: ``at(t, context)`` is the field at one time, ``forward`` its value at x."""

    def __init__(self, sizes: tuple[int, ...], activation: str, time: str, context_features: int | None) -> None:
        sizes = tuple(sizes)
        if len(sizes) < 3 or min(sizes) < 1 or sizes[0] != sizes[-1]:
            raise ValueError(f"sizes must be those of x, hidden layers and x again, each at least 1, got {sizes}")
        for name, value, allowed in (("activation", activation, ACTIVATIONS), ("time", time, TIMES)):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
        if context_features is not None and context_features < 1:
            raise ValueError(f"context_features must be at least 1, or None, got {context_features}")
        super().__init__()
        self.sizes, self.activation, self.time, self.context_features = sizes, activation, time, context_features
        if time == "concat-squash":
            self.gates = nn.ModuleList(nn.Linear(1, out) for out in sizes[1:])
            self.shifts = nn.ModuleList(nn.Linear(1, out, bias=False) for out in sizes[1:])

    @abstractmethod
    def at(self, t: float | Tensor | None = None, context: Tensor | None = None) -> Field:
        """f(., t, context)."""

    def forward(self, x: Tensor, t: float | Tensor | None = None, context: Tensor | None = None) -> Tensor:
        if context is not None and context.shape[0] != x.shape[0]:
            raise ValueError(
                f"context must have a row for each of the {x.shape[0]} samples of x, got shape {tuple(context.shape)}"
            )
        return self.at(t, context)(x)

    def _squash(
        self, t: Tensor, weights: list[Tensor], biases: list[Tensor], added: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases with the gates and shifts; ``added`` [N, out] is the context's part of the first bias.

        All layers together, since there is little to compute and much to call.
        """
        scales, offsets = (
            torch.cat(list(parts)) for parts in zip(*((g.weight, g.bias) for g in self.gates), strict=True)
        )
        gates = torch.addcmul(offsets[:, None], scales, t).sigmoid()
        shifts = torch.cat([shift.weight for shift in self.shifts]) * t
        together = torch.addcmul(shifts, gates, torch.cat(biases)[:, None]).squeeze(1)
        shape = (-1, *[1] * (weights[0].dim() - 1))
        each = gates.view(shape).split(self.sizes[1:])
        weights = [weight * gate for weight, gate in zip(weights, each, strict=True)]
        first, *others = together.split(self.sizes[1:])
        return weights, [first if added is None else torch.addcmul(first, added, each[0].flatten()), *others]

    def _number(self, t: float | Tensor | None, like: Tensor) -> Tensor:
        if t is None:
            raise ValueError(f"t must be given to a field with time={self.time!r}, got None")
        t = torch.as_tensor(t, dtype=like.dtype, device=like.device)
        if t.numel() != 1:
            raise ValueError(f"t must be one number, the same for the batch, got shape {tuple(t.shape)}")
        return t.reshape(())

    def _check_context(self, context: Tensor | None) -> None:
        features = self.context_features
        if context is None and features is not None:
            raise ValueError(f"context must be given to a field with context_features={features}, got None")
        if context is not None and (features is None or context.dim() != 2 or context.shape[1] != features):
            wanted = "None" if features is None else f"[N, {features}]"
            raise ValueError(f"context must be {wanted} for context_features={features}, got {tuple(context.shape)}")

    def extra_repr(self) -> str:
        context = f", context_features={self.context_features}" if self.context_features else ""
        return f"{self.sizes}, activation={self.activation!r}, time={self.time!r}{context}"


class MLPField(FieldNet):
    """A multilayer perceptron f(x, t, context) from [N, D] to [N, D], the field of a continuous normalizing flow.

    With W and b the layer's weight and bias, t a number and sigma the logistic function, a layer is::

        "none":           W h + b                                   t is not used
        "concat":         W [t, h] + b                              t is one more input of every layer
        "concat-squash":  (W h + b) sigma(g t + c) + u t            FFJORD: a gate and a bias that depend on t

    and the activation follows every layer but the last. The first layer's h is [x, context].

    ``forward(x, t, context)`` is f; ``at(t, context)`` is the same field at one time as a ``DenseField``, whose trace
    ``fastgen.ops.hutchinson_trace`` finds fast.

    Args:
        sizes: the widths D, hidden ..., D, of at least one hidden layer.
        activation: "tanh", "softplus", "swish" or "elu".
        time: as above.
        context_features: F of a context [N, F] that f depends on; None for none.

    Raises:
        ValueError: fewer than three sizes, first and last unlike, an unknown activation or time; t missing where it is
            used, or not one number; a context missing, of another shape, or where there is none.

    Reference: Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud, "FFJORD", ICLR 2019.

    Example:
        >>> field = MLPField((2, 64, 64, 2), time="concat-squash")
        >>> field(torch.randn(5, 2), 0.3).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        activation: str = "tanh",
        time: str = "none",
        context_features: int | None = None,
    ) -> None:
        super().__init__(sizes, activation, time, context_features)
        extra = int(time == "concat")
        widths = [self.sizes[0] + (context_features or 0), *self.sizes[1:-1]]
        self.layers = nn.ModuleList(
            nn.Linear(width + extra, out) for width, out in zip(widths, self.sizes[1:], strict=True)
        )

    def at(self, t: float | Tensor | None = None, context: Tensor | None = None) -> DenseField:
        """f(., t, context), both folded into the weights and biases."""
        self._check_context(context)
        weights = [layer.weight for layer in self.layers]
        biases = [layer.bias for layer in self.layers]
        if self.time != "none":
            t = self._number(t, biases[0])
        with without_autocast(weights[0]):
            added = None
            if context is not None:
                weights[0], across = weights[0].tensor_split([-self.context_features], 1)
                added = context.to(across.dtype) @ across.t()
            if self.time == "concat-squash":
                return DenseField(*self._squash(t, weights, biases, added), self.activation)
            if self.time == "concat":
                columns, weights = zip(*(weight.tensor_split([1], 1) for weight in weights), strict=True)
                biases = [
                    torch.addcmul(bias, column.squeeze(1), t) for bias, column in zip(biases, columns, strict=True)
                ]
            if added is not None:
                biases[0] = biases[0] + added
            return DenseField(weights, biases, self.activation)
