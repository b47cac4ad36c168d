"""The sequential direction of masked autoregressive flows: every unit of the network once, instead of D full passes.

A masked network gives every feature parameters that depend on the features of lower degree. Sorted by degree, the units
of degree k can be computed as soon as the features of degree k are known, and never change again (Germain, Gregor,
Murray, Larochelle, "MADE", ICML 2015).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.interop.eligible import is_transformed

Elementwise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(u [N, n], parameters [N, n P]) -> (x [N, n], log-determinant [N]) of n features."""

_NAMES: dict[Callable, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.tanh: "tanh",
    F.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    F.elu: "elu",
}
_MODULES: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.ELU: "elu"}
_OTHERS = (F.gelu, F.silu, F.leaky_relu, F.softplus, F.mish, F.selu)
_OTHER_MODULES = (nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Softplus, nn.Mish, nn.SELU)


def activation_name(activation: Callable) -> str | None:
    """What ``fastgen.ops.sequential_affine`` calls the activation; None if it has not got it."""
    if isinstance(activation, nn.ELU) and activation.alpha != 1:
        return None
    if isinstance(activation, nn.Module):
        return _MODULES.get(type(activation))
    return next((name for function, name in _NAMES.items() if function is activation), None)


def is_elementwise(activation: Callable) -> bool:
    """Whether it is known to treat every unit alone, the same way each time, and not in place."""
    if isinstance(activation, nn.Module):
        return type(activation) in (*_MODULES, *_OTHER_MODULES) and not getattr(activation, "inplace", False)
    return any(function is activation for function in (*_NAMES, *_OTHERS))


def is_plain(network: nn.Module) -> bool:
    """Whether calling the network does no more than its modules' ``forward`` says: it has no hooks, no autocast."""
    if is_transformed():
        return False
    if any(m._forward_hooks or m._forward_pre_hooks for m in network.modules()):
        return False
    return not any(torch.is_autocast_enabled(p.device.type) for p in network.parameters())


def is_recorded(network: nn.Module, *tensors: Tensor | None) -> bool:
    """Whether gradients are recorded for a parameter of the network, or for one of the tensors."""
    if not torch.is_grad_enabled():
        return False
    return any(t is not None and t.requires_grad for t in (*tensors, *network.parameters()))


def is_mask_of(mask: Tensor, outputs: Tensor, inputs: Tensor, *, strict: bool = False) -> bool:
    """Whether the mask lets units of degrees ``outputs`` see those of ``inputs`` up to their own, ``strict``, below."""
    if mask.shape != (len(outputs), len(inputs)):
        return False
    wanted = outputs[:, None] > inputs if strict else outputs[:, None] >= inputs
    return torch.equal(mask, wanted.to(mask.dtype))


def with_values(found: Tensor, values: Tensor) -> Tensor:
    """Values that are nearer than what was found, with the gradient of that."""
    return found + (values - found).detach() if found.requires_grad else values


class Units(Protocol):
    """Units sorted by degree, of which ``stops[k]`` have a degree below k.

    Attributes:
        order: the numbers of the units, sorted by degree.
        values: [units, N], right as far as ``advance`` has been.
        parts: views of the values, one for each degree.
    """

    order: Tensor
    stops: list[int]
    values: Tensor
    parts: Sequence[Tensor]

    def advance(self, degree: int) -> None:
        """Computes the units of the degree; those of lower degrees have been."""


class Features:
    """The features themselves, x [D, N], found degree by degree."""

    def __init__(self, u: Tensor, degrees: Tensor) -> None:
        self.order, self.stops = _sorted(degrees, int(degrees.max()))
        self.values = u.new_zeros(u.shape[1], u.shape[0])
        self.parts = self.values.split(_counts(self.stops))

    def advance(self, degree: int) -> None:
        """They come from outside."""


class Linear:
    """A masked linear map: a unit sees those of the source of degree at most its own."""

    def __init__(
        self, source: Units, weight: Tensor, bias: Tensor, degrees: Tensor, offset: Tensor | None = None
    ) -> None:
        self.source, (self.order, self.stops) = source, _sorted(degrees, len(source.stops) - 2)
        self.values = source.values.new_zeros(len(self.order), source.values.shape[1])
        counts = _counts(self.stops)
        self.parts = self.values.split(counts)
        self._weights = weight[self.order][:, source.order].split(counts)
        shift = bias[:, None] if offset is None else bias[:, None] + offset.t()
        self._shifts = shift[self.order].split(counts)

    def advance(self, degree: int) -> None:
        seen, weight = self.source.stops[degree + 1], self._weights[degree]
        torch.addmm(self._shifts[degree], weight[:, :seen], self.source.values[:seen], out=self.parts[degree])


class Activation:
    """An elementwise function of units."""

    def __init__(self, source: Units, function: Callable[[Tensor], Tensor]) -> None:
        self.source, self.function = source, function
        self.order, self.stops, self.values = source.order, source.stops, torch.zeros_like(source.values)
        self.parts = self.values.split(_counts(self.stops))

    def advance(self, degree: int) -> None:
        self.parts[degree].copy_(self.function(self.source.parts[degree]))


class Sum:
    """Two layers of units of the same degrees, added: the end of a residual block."""

    def __init__(self, first: Units, second: Units) -> None:
        self.first, self.second = first, second
        self.order, self.stops, self.values = first.order, first.stops, torch.zeros_like(first.values)
        self.parts = self.values.split(_counts(self.stops))

    def advance(self, degree: int) -> None:
        torch.add(self.first.parts[degree], self.second.parts[degree], out=self.parts[degree])


@torch.no_grad()
def solve(
    u: Tensor, features: Features, layers: Sequence[Units], weight: Tensor, bias: Tensor, invert: Elementwise
) -> tuple[Tensor, Tensor]:
    """``(x [N, D], log-determinant [N])`` of the inverse; no gradient is recorded.

    Args:
        u: [N, D].
        layers: the network's hidden layers, in the order of their computation.
        weight, bias: [D P, units of the last layer] and [D P] of the masked linear map that gives every feature its P
            parameters from the units of lower degree.
        invert: the inverse of the features' elementwise map.
    """
    last, count, counts = layers[-1], len(weight) // u.shape[1], _counts(features.stops)
    rows = (features.order[:, None] * count + torch.arange(count, device=u.device)).flatten()
    weights = weight[rows][:, last.order].split([n * count for n in counts])
    biases = bias[rows].split([n * count for n in counts])
    log_det = u.new_zeros(len(u))
    for degree, own in enumerate(u[:, features.order].split(counts, 1)):
        if counts[degree]:
            seen = last.stops[degree]
            parameters = F.linear(last.values[:seen].t(), weights[degree][:, :seen], biases[degree])
            found, change = invert(own, parameters)
            features.parts[degree].copy_(found.t())
            log_det += change
        for layer in layers:
            if len(layer.parts[degree]):
                layer.advance(degree)
    return features.values[features.order.argsort()].t().contiguous(), log_det


def _sorted(degrees: Tensor, highest: int) -> tuple[Tensor, list[int]]:
    """Units sorted by degree, and how many of them have a degree below 0, 1, ..., ``highest`` + 1."""
    counts = torch.bincount(degrees, minlength=highest + 1)
    return degrees.argsort(stable=True), [0, *counts.cumsum(0).tolist()]


def _counts(stops: list[int]) -> list[int]:
    """How many units have each degree."""
    return [after - before for before, after in itertools.pairwise(stops)]
