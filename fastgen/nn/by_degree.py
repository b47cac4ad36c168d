"""A masked network degree by degree: every unit is computed once, when the features that it sees are there."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.nn.made import MaskedNetwork
from fastgen.nn.masked_linear import MaskedLinear

Elementwise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(u [N, 1], parameters [N, 1, P]) -> (x [N, 1], log-determinant [N]) of one feature."""


def invert_by_degree(
    u: Tensor, network: MaskedNetwork, invert: Elementwise, context: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``(x [N, D], log-determinant [N])`` with x = invert(u, network(x, context)), feature by feature in one pass.

    With its units sorted by degree a masked network is a sequence of D small networks: the units of degree k see units
    up to degree k alone, and the parameters of the next feature see the same. Each unit is computed when its degree's
    turn comes, and never again; a masked weight costs nothing. Gradients are those of the operations, to any order.

    Args:
        u: [N, D].
        network: of P outputs a feature, laid out feature by feature.
        invert: the inverse of the features' elementwise map, called D times.
        context: of the network.
    """
    offsets = network.offsets(context)
    features = network.degrees[0]
    rows = features.repeat_interleave(network.layers[-1].out_features // len(features)) - 1
    maps = [
        _LinearByDegree(layer, inputs, outputs, offsets.get(i), len(features))
        for i, (layer, (inputs, outputs)) in enumerate(
            zip(network.layers, pairwise([*network.degrees, rows]), strict=True)
        )
    ]
    order = features.argsort()
    x, found, log_det = u[:, :0], [], 0
    for own in u[:, order].split(1, 1):
        parameters = network.run(x, lambda i, value: maps[i](value))
        x, change = invert(own, parameters[:, None])
        found.append(x)
        log_det = log_det + change
    return torch.cat(found, 1)[:, features - 1], log_det


class _LinearByDegree:
    """A masked linear map that is called with the inputs of degree 0, 1, ... in turn, and returns the outputs of it."""

    def __init__(self, layer: MaskedLinear, inputs: Tensor, outputs: Tensor, offset: Tensor | None, count: int) -> None:
        columns, rows = inputs.argsort(stable=True), outputs.argsort(stable=True)
        self.weight = layer.weight.index_select(0, rows).index_select(1, columns)
        self.bias, self.offset = layer.bias[rows], None if offset is None else offset[:, rows]
        self.sizes = iter(torch.bincount(outputs, minlength=count).tolist())
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
            self.inputs = value.new_empty(len(value), self.weight.shape[1])
        self.inputs[:, before : self.seen] = value
        return self.inputs[:, : self.seen]
