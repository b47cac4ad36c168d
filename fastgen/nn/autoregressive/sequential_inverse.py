"""A masked network degree by degree: every unit is computed once, when the features that it sees are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Elementwise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(u [N, n], parameters [N, n, P]) -> (x [N, n], log-determinant [N]) of n features."""

NetworkPass = Callable[[Tensor, Callable[[int, Tensor], Tensor]], Tensor]
"""(x, linear) -> the network's outputs: ``linear(i, value)`` applies map i, each once, in their order, and between them
every unit is treated alone."""


class MaskedMap(NamedTuple):
    """A linear map, value W^T + b + offset, whose unit of a degree sees the inputs of at most that degree.

    Attributes:
        weight, bias: [outputs, inputs] and [outputs]; what the mask hides is not read.
        inputs, outputs: degrees, int64.
        offset: [N, outputs], or None.
    """

    weight: Tensor
    bias: Tensor
    inputs: Tensor
    outputs: Tensor
    offset: Tensor | None = None


def invert_by_degree(
    u: Tensor, degrees: Tensor, maps: Sequence[MaskedMap], run: NetworkPass, invert: Elementwise
) -> tuple[Tensor, Tensor]:
    """``(x [N, D], log-determinant [N])`` with x = invert(u, network(x)), in one pass.

    With its units sorted by degree a masked network is a sequence of small networks: the units of degree k see units
    up to degree k alone, and the parameters of the features of degree k + 1 see the same. Each unit is computed when
    its degree's turn comes, and never again; a masked weight costs nothing. Gradients are those of the operations, to
    any order.

    Args:
        u: [N, D].
        degrees: of the features, 1 or more.
        maps: the network's linear maps, the last of which gives every feature P outputs, feature by feature, of one
            degree less than the feature's.
        run: how they follow one another.
        invert: the inverse of the features' elementwise map, called for each degree.
    """
    turns, order = int(degrees.max()), degrees.argsort(stable=True)
    counts = torch.bincount(degrees, minlength=turns + 1).tolist()[1:]
    linear = [_LinearByDegree(mapping, turns) for mapping in maps]
    x, found, log_det = u[:, :0], [], 0
    for own in u[:, order].split(counts, 1):
        parameters = run(x, lambda i, value: linear[i](value))
        x = own
        if own.shape[1]:
            x, change = invert(own, parameters.unflatten(1, (own.shape[1], -1)))
            log_det = log_det + change
        found.append(x)
    return torch.cat(found, 1)[:, order.argsort()], log_det


class _LinearByDegree:
    """A masked linear map that is called with the inputs of degree 0, 1, ... in turn, and returns the outputs of it."""

    def __init__(self, mapping: MaskedMap, turns: int) -> None:
        columns, rows = mapping.inputs.argsort(stable=True), mapping.outputs.argsort(stable=True)
        self.weight = mapping.weight.index_select(0, rows).index_select(1, columns)
        self.bias, self.offset = mapping.bias[rows], None if mapping.offset is None else mapping.offset[:, rows]
        self.sizes = iter(torch.bincount(mapping.outputs, minlength=turns).tolist())
        self.inputs, self.seen, self.start = None, 0, 0

    def __call__(self, value: Tensor) -> Tensor:
        seen, new = self._append(value), slice(self.start, self.start + next(self.sizes))
        self.start = new.stop
        found = F.linear(seen, self.weight[new, : self.seen], self.bias[new])
        return found if self.offset is None else found + self.offset[:, new]

    def _append(self, value: Tensor) -> Tensor:
        """All inputs so far; without gradients in one buffer, else in a new tensor, as those before must not change."""
        before, self.seen = self.seen, self.seen + value.shape[1]
        if torch.is_grad_enabled():
            self.inputs = value if self.inputs is None else torch.cat((self.inputs, value), 1)
            return self.inputs
        if self.inputs is None:
            self.inputs = value.new_empty(value.shape[0], self.weight.shape[1])
        self.inputs[:, before : self.seen] = value
        return self.inputs[:, : self.seen]
