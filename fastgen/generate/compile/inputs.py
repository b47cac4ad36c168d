"""Chooses the network's input where the head does not say: integers, or levels as floats."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fastgen.generate.errors import CompileError
from fastgen.generate.frontend.untouched import borrowed
from fastgen.generate.heads import Head

_CASTS = (torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype)


def with_input(head: Head, network: nn.Module, shape: tuple[int, ...], context) -> Head:
    """Returns the head with the input that ``network`` (called with the context, if there is one) takes.

    A network that takes floats, and does not turn them into integers, gets levels as floats; any other gets integers,
    as one with an embedding or ``one_hot`` does.

    Raises:
        CompileError: the network takes neither.
    """
    if head.to_input_name is not None:
        return head
    with _Casts() as casts:
        floats = _refusal(network, torch.float32, shape, context)
    if floats is None:
        return head.reading("index" if casts.found else "float")
    integers = _refusal(network, torch.int64, shape, context)
    if integers is None:
        return head.reading("index")
    raise CompileError(
        f"the network takes neither floats nor integers {list(shape)} (a batch of two of event_shape "
        f"{tuple(shape[1:])}). Given floats: {floats}. Given integers: {integers}"
    )


def advice(head: Head, network: nn.Module, shape: tuple[int, ...], context) -> str:
    """Returns what to pass instead, where the network does not take the head's input but takes the other kind."""
    fed, other, names = torch.int64, torch.float32, '"float", "unit" or "symmetric", whichever it was trained with'
    if head.to_input_name != "index":
        fed, other, names = other, fed, '"index"'
    if not head.levels or not _refusal(network, fed, shape, context) or _refusal(network, other, shape, context):
        return ""
    kinds = {torch.int64: "integers", torch.float32: "floats"}
    return (
        f". The head feeds {kinds[fed]} (to_input={head.to_input_name!r}) and the network takes {kinds[other]}: pass "
        f"to_input={names}; without to_input the sampler chooses"
    )


def _refusal(network: nn.Module, dtype: torch.dtype, shape: tuple[int, ...], context) -> str | None:
    """Returns why the network does not take an input; None where it does."""
    with borrowed(network):
        try:
            network(torch.zeros(shape, dtype=dtype), tree_map_only(Tensor, torch.clone, context))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return None


class _Casts(TorchDispatchMode):
    """Finds out whether floats are turned into integers."""

    found = False

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        if operator in _CASTS and isinstance(result, Tensor) and args[0].is_floating_point():
            self.found |= not (result.is_floating_point() or result.is_complex() or result.dtype == torch.bool)
        return result
