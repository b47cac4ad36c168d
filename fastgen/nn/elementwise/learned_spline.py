"""The base of layers of elementwise splines with parameters of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgen.nn.elementwise.spline_transform import SplineTransform
from fastgen.nn.flow.flow_layer import FlowLayer


class Spline(SplineTransform, FlowLayer):
    """A ``SplineTransform`` of elements [N, *shape] with parameters of its own, which begin as the identity.

    Args:
        raw_derivative: the parameter that makes a derivative 1.
        bins, tails, bound, kind, least: of the ``SplineTransform``.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        bins: int,
        tails: str,
        bound: float,
        raw_derivative: float,
        *,
        kind: str,
        **least: float,
    ) -> None:
        super().__init__(bins, tails, bound, kind=kind, **least)
        self.shape = tuple(shape)
        identity = torch.zeros(*self.shape, self.parameters_per_element)
        identity[..., 2 * bins :] = raw_derivative
        self.raw = nn.Parameter(identity)

    def forward(self, x: Tensor, parameters: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return super().forward(x, self._parameters_of(x, parameters))

    def inverse(self, y: Tensor, parameters: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return super().inverse(y, self._parameters_of(y, parameters))

    def _parameters_of(self, x: Tensor, parameters: Tensor | None) -> Tensor:
        if x.shape[1:] != self.shape:
            raise ValueError(f"x must have shape [N, {', '.join(map(str, self.shape))}], got {tuple(x.shape)}")
        wanted = (x.shape[0], *self.raw.shape)
        if parameters is None:
            return self.raw.expand(wanted)
        if parameters.shape != wanted:
            raise ValueError(f"parameters must have shape {wanted}, got {tuple(parameters.shape)}")
        return parameters

    def extra_repr(self) -> str:
        return f"{self.shape}, {super().extra_repr()}"
