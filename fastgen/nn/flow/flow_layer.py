"""The base class of flow layers, and the arguments that a layer is called with."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn


class FlowLayer(nn.Module):
    """A layer of a flow: an invertible map of a batch, with the log-determinant of its Jacobian for each sample::

        y, log_det = layer(x)            log_det [N] = log |det dy/dx|
        x, log_det = layer.inverse(y)    log_det [N] = log |det dx/dy|

    A subclass has both methods and says the following of them. ``FlowSequential``, ``Inverse`` and ``MultiScale`` hand
    a layer what it takes. A module that is no ``FlowLayer`` can be their layer as well: it takes what its ``forward``
    names.

    Attributes:
        takes_context: both methods take ``context``, a tensor [N, ...] or None.
        takes_seed: both methods take ``seed``, an int that decides what is random in the log-determinant; None draws it
            from PyTorch's generator.
        estimate: how the log-determinant is estimated in eval mode, in words; None where it is exact.
        set_by_first_batch: the first batch that goes through ``forward`` in training mode sets parameters of the layer.
            Layers inside it say so themselves.
        normalizes_by_batch: in training mode ``forward`` uses statistics of its batch, and ``inverse`` others, so that
            it undoes ``forward`` in eval mode only.

    Example:
        >>> class Shift(FlowLayer):
        ...     takes_context = True
        ...
        ...     def forward(self, x, context):
        ...         return x + context, no_log_det(x)
        ...
        ...     def inverse(self, y, context):
        ...         return y - context, no_log_det(y)
        >>> from fastgen.nn import FlowSequential, Logit
        >>> x, context = torch.rand(5, 2), torch.randn(5, 2)
        >>> flow = FlowSequential(Logit(), Shift())
        >>> torch.allclose(flow.inverse(flow(x, context)[0], context)[0], x, atol=1e-5)
        True
    """

    takes_context: bool = False
    takes_seed: bool = False
    set_by_first_batch: bool = False
    normalizes_by_batch: bool = False

    @property
    def estimate(self) -> str | None:
        return None

    def inverse(self, y: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """y to (x, log_det [N] of that); the arguments are those of ``forward``."""
        raise NotImplementedError(f"{type(self).__name__} must have a method inverse")

    def batch_statistics(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the buffers, by name, with which ``inverse`` undoes ``forward(x)`` in training mode.

        Empty unless the layer ``normalizes_by_batch``.
        """
        return {}


def optional_arguments(layer: nn.Module) -> tuple[str, ...]:
    """Returns which of "context" and "seed" a flow layer takes: as it says, or as its ``forward`` names them.

    Raises:
        TypeError: the layer has no method ``inverse``.
    """
    if isinstance(layer, FlowLayer):
        takes = {"context": layer.takes_context, "seed": layer.takes_seed}
        return tuple(name for name, taken in takes.items() if taken)
    if not callable(getattr(layer, "inverse", None)):
        raise TypeError(f"a flow layer must have a method inverse, got a {type(layer).__name__}")
    names = inspect.signature(layer.forward).parameters
    return tuple(name for name in ("context", "seed") if name in names)


def chosen(names: tuple[str, ...], context: Tensor | None, seed: int | None) -> dict[str, Tensor | int | None]:
    """Returns the ``optional_arguments`` with these names, by name."""
    given = {"context": context, "seed": seed}
    return {name: given[name] for name in names}


def no_log_det(x: Tensor) -> Tensor:
    """Returns the log-determinants [N] of a map that keeps volumes: zeros, float64 for x in float64, else float32."""
    return x.new_zeros(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))
