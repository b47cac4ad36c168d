"""What the layers of elementwise splines have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastgen.reference.rq_spline import TAILS


class Spline(nn.Module):
    """A monotone spline on every element; a subclass says which, by its op and the number of its parameters.

    Attributes:
        op: the public function of the spline.
        parameters_of: how many parameters an element has, from the number of bins and that of the tails.

    Args:
        raw_derivative: the parameter that makes a derivative 1.
        least: the least sizes, by their names in ``op``.
    """

    op: ClassVar[Callable[..., tuple[Tensor, Tensor]]]
    parameters_of: ClassVar[Callable[[int, int], int]]

    def __init__(
        self, shape: tuple[int, ...], bins: int, tails: str, bound: float, raw_derivative: float, **least: float
    ) -> None:
        if bins < 1:
            raise ValueError(f"bins={bins} must be at least 1")
        if tails not in TAILS:
            raise ValueError(f"tails is {tails!r}; it must be one of {', '.join(map(repr, TAILS))}")
        super().__init__()
        self.shape, self.bins, self.tails, self.bound, self.least = tuple(shape), bins, tails, bound, least
        self.parameters_per_element = self.parameters_of(bins, TAILS.index(tails))
        identity = torch.zeros(*self.shape, self.parameters_per_element)
        identity[..., 2 * bins :] = raw_derivative
        self.raw = nn.Parameter(identity)

    def forward(self, x: Tensor, parameters: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._transform(x, parameters, inverse=False)

    def inverse(self, y: Tensor, parameters: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._transform(y, parameters, inverse=True)

    def _transform(self, x: Tensor, parameters: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if x.shape[1:] != self.shape:
            raise ValueError(f"x has shape {tuple(x.shape)}; it must be [N, {', '.join(map(str, self.shape))}]")
        if parameters is None:
            parameters = self.raw.expand(len(x), *self.raw.shape)
        elif parameters.shape != (len(x), *self.raw.shape):
            wanted = (len(x), *self.raw.shape)
            raise ValueError(f"parameters has shape {tuple(parameters.shape)}; it must be {wanted}")
        y, log_det = self.op(x, parameters, inverse=inverse, tails=self.tails, bound=self.bound, **self.least)
        return y, log_det.flatten(1).sum(1)

    def extra_repr(self) -> str:
        return f"{self.shape}, bins={self.bins}, tails={self.tails}, bound={self.bound}"
