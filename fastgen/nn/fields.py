"""Vector fields of continuous flows, as networks that fastgen knows the derivatives of."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from fastgen.ops.dense_field import DenseField
from fastgen.reference.hutchinson_trace import ACTIVATIONS

TIMES = ("none", "concat", "concat-squash")


class MLPField(nn.Module):
    """A multilayer perceptron f(x, t) from [N, D] to [N, D], the field of a continuous normalizing flow.

    With W and b the layer's weight and bias, t a number and sigma the logistic function, a layer is::

        "none":           W h + b                                   t is not used
        "concat":         W [t, h] + b                              t is one more input of every layer
        "concat-squash":  (W h + b) sigma(g t + c) + u t            FFJORD: a gate and a bias that depend on t

    and the activation follows every layer but the last. ``forward(x, t)`` is f; ``at(t)`` is the same field at
    one time as a ``DenseField``, whose trace ``fastgen.ops.hutchinson_trace`` finds fast.

    Args:
        sizes: the widths D, hidden ..., D, of at least one hidden layer.
        activation: "tanh", "softplus" or "swish".
        time: as above.

    Raises:
        ValueError: fewer than three sizes, first and last unlike, an unknown activation or time; t missing where it is
            used, or not one number.

    Reference: Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud, "FFJORD", ICLR 2019.

    Example:
        >>> field = MLPField((2, 64, 64, 2), time="concat-squash")
        >>> field(torch.randn(5, 2), 0.3).shape
        torch.Size([5, 2])
    """

    def __init__(self, sizes: tuple[int, ...], activation: str = "tanh", time: str = "none") -> None:
        sizes = tuple(sizes)
        if len(sizes) < 3 or min(sizes) < 1 or sizes[0] != sizes[-1]:
            raise ValueError(f"sizes is {sizes}; it must be D, hidden widths and D again, each at least 1")
        for name, value, allowed in (("activation", activation, ACTIVATIONS), ("time", time, TIMES)):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")
        super().__init__()
        self.sizes, self.activation, self.time = sizes, activation, time
        extra = int(time == "concat")
        pairs = list(itertools.pairwise(sizes))
        self.layers = nn.ModuleList(nn.Linear(width + extra, out) for width, out in pairs)
        if time == "concat-squash":
            self.gates = nn.ModuleList(nn.Linear(1, out) for _, out in pairs)
            self.shifts = nn.ModuleList(nn.Linear(1, out, bias=False) for _, out in pairs)

    def forward(self, x: Tensor, t: float | Tensor | None = None) -> Tensor:
        return self.at(t)(x)

    def at(self, t: float | Tensor | None = None) -> DenseField:
        """f(., t), t folded into the weights and biases."""
        weights = [layer.weight for layer in self.layers]
        biases = [layer.bias for layer in self.layers]
        if self.time != "none":
            t = self._number(t, biases[0])
        if self.time == "concat":
            biases = [bias + weight[:, 0] * t for weight, bias in zip(weights, biases, strict=True)]
            weights = [weight[:, 1:] for weight in weights]
        elif self.time == "concat-squash":
            gates = [torch.sigmoid(gate.weight[:, 0] * t + gate.bias) for gate in self.gates]
            shifts = [shift.weight[:, 0] * t for shift in self.shifts]
            weights = [gate[:, None] * weight for gate, weight in zip(gates, weights, strict=True)]
            biases = [gate * bias + shift for gate, bias, shift in zip(gates, biases, shifts, strict=True)]
        return DenseField(weights, biases, self.activation)

    def _number(self, t: float | Tensor | None, like: Tensor) -> Tensor:
        if t is None:
            raise ValueError(f"t is missing; a field with time={self.time!r} needs it")
        t = torch.as_tensor(t, dtype=like.dtype, device=like.device)
        if t.numel() != 1:
            raise ValueError(f"t has shape {tuple(t.shape)}; it must be one number, the same for the batch")
        return t.reshape(())

    def extra_repr(self) -> str:
        return f"{self.sizes}, activation={self.activation!r}, time={self.time!r}"
