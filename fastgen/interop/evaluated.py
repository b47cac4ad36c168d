"""A layer whose networks have run already, so that the library's code goes on from their outputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Evaluated:
    """A stand-in for a layer in which some networks return given outputs.

    A library's method, called with this as ``self``, so runs no network a second time.

    Example:
        >>> layer = torch.nn.Sequential(torch.nn.Linear(1, 1))
        >>> Evaluated(layer, forward=torch.ones(2)).forward(torch.zeros(1))
        tensor([1., 1.])
    """

    def __init__(self, layer: nn.Module, **outputs: Tensor) -> None:
        self._layer = layer
        self._outputs = outputs

    def __getattr__(self, name: str) -> Any:
        if name not in self._outputs:
            return getattr(self._layer, name)
        output = self._outputs[name]
        return lambda *_: output
