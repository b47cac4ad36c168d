"""Flow layers that move numbers about, of log-determinant 0."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from fastgen.nn.derived_buffers import DerivedBuffers
from fastgen.nn.flow.flow_layer import FlowLayer, no_log_det


class Permutation(DerivedBuffers, FlowLayer):
    """``y[:, i] = x[:, indices[i]]`` on [N, C, ...]: ``forward(x)`` and ``inverse(y)`` return (y, zeros [N]).

    Args:
        indices: every number below C once; ``Permutation.reversed(C)`` and ``Permutation.random(C)`` make them.

    Raises:
        ValueError: the indices are no permutation; an x of another number of channels.

    Example:
        >>> Permutation.reversed(3)(torch.tensor([[1.0, 2.0, 3.0]]))[0]
        tensor([[3., 2., 1.]])
    """

    def __init__(self, indices: Sequence[int] | Tensor) -> None:
        super().__init__()
        indices = indices.tolist() if isinstance(indices, Tensor) else list(indices)
        if sorted(indices) != list(range(len(indices))):
            raise ValueError(f"indices must have every number below {len(indices)} once, got {indices}")
        self.register_buffer("indices", torch.tensor(indices, dtype=torch.int64))
        self.derive()

    def derived(self) -> dict[str, Tensor]:
        return {"inverse_indices": self.indices.argsort()}

    @classmethod
    def reversed(cls, channels: int) -> Permutation:
        return cls(range(channels - 1, -1, -1))

    @classmethod
    def random(cls, channels: int) -> Permutation:
        """Drawn from PyTorch's generator, now."""
        return cls(torch.randperm(channels, device="cpu"))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._move(x, self.indices), no_log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._move(y, self.inverse_indices), no_log_det(y)

    def _move(self, x: Tensor, indices: Tensor) -> Tensor:
        if x.dim() < 2 or x.shape[1] != len(indices):
            raise ValueError(f"x must have shape [N, {len(indices)}, ...], got {tuple(x.shape)}")
        return x.index_select(1, indices)

    def extra_repr(self) -> str:
        return f"{len(self.indices)}"


class Flatten(FlowLayer):
    """[N, *shape] to [N, D]: ``forward(x)`` and ``inverse(y)`` return (y, zeros [N]).

    Example:
        >>> Flatten((1, 2, 3))(torch.randn(5, 1, 2, 3))[0].shape
        torch.Size([5, 6])
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[1:] != self.shape:
            raise ValueError(f"x must have shape [N, {', '.join(map(str, self.shape))}], got {tuple(x.shape)}")
        return x.flatten(1), no_log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        if y.dim() != 2 or y.shape[1] != prod(self.shape):
            raise ValueError(f"y must have shape [N, {prod(self.shape)}], got {tuple(y.shape)}")
        return y.unflatten(1, self.shape), no_log_det(y)

    def extra_repr(self) -> str:
        return f"{self.shape}"
