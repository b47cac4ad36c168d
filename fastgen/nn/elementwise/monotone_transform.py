"""The base of elementwise monotone transforms without a closed inverse."""

from __future__ import annotations

from torch import Tensor, nn

from fastgen.nn.elementwise.monotone_inverse import monotone_inverse
from fastgen.ops.precision import in_float32


class MonotoneTransform(nn.Module):
    """An increasing function of every element, its parameters given: ``forward(x, parameters)`` and ``inverse`` return
    (y or x [N, ...], log_det [N]).

    x is [N, ...], parameters [N, ..., parameters_per_element], as a coupling's or an autoregressive layer's conditioner
    makes them. Half precision is computed in float32, log_det is float32 or float64. The inverse is numeric, by
    ``monotone_inverse``; both directions have gradients. A subclass has ``transform``.

    Args:
        parameters_per_element: how many numbers a function is given by.

    Raises:
        ValueError: parameters of another shape; a y that the function does not reach (where ``monotone_inverse`` sees).

    Example:
        >>> import torch
        >>> class Cubic(MonotoneTransform):
        ...     def transform(self, x, parameters):
        ...         scale = parameters.squeeze(-1).exp()
        ...         return x + scale * x**3, torch.log1p(3 * scale * x.square())
        >>> cubic, parameters = Cubic(1), torch.zeros(1, 2, 1)
        >>> cubic(torch.tensor([[1.0, -2.0]]), parameters)[0]
        tensor([[  2., -10.]])
        >>> cubic.inverse(torch.tensor([[2.0, -10.0]]), parameters)[0]
        tensor([[ 1., -2.]])
    """

    def __init__(self, parameters_per_element: int) -> None:
        super().__init__()
        self.parameters_per_element = parameters_per_element

    def transform(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """(f(x), log f'(x)), each of x's shape; both arguments have one dtype, float32 or float64."""
        raise NotImplementedError

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """x to (y, log_det [N])."""
        self._check(x, "x", parameters)
        y, log_slope = self.transform(*in_float32(x, parameters))
        return y.to(x.dtype), log_slope.flatten(1).sum(1)

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """y to (x, log_det [N] of that)."""
        self._check(y, "y", parameters)
        wide, parameters = in_float32(y, parameters)
        x, log_slope = monotone_inverse(lambda x: self.transform(x, parameters), wide)
        return x.to(y.dtype), log_slope.flatten(1).sum(1)

    def _check(self, x: Tensor, name: str, parameters: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"{name} must have shape [N, ...], with 2 dimensions at least, got {tuple(x.shape)}")
        wanted = (*x.shape, self.parameters_per_element)
        if parameters.shape != wanted:
            raise ValueError(f"parameters must have shape {wanted}, got {tuple(parameters.shape)}")
