"""What a network reads where the head does not say: integers, or levels as floats."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastgen.eval_mode import eval_mode
from fastgen.generate.errors import CompileError
from fastgen.generate.heads import Head

_CASTS = (torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype)


def with_input(head: Head, network: nn.Module, shape: tuple[int, ...], context) -> Head:
    """The head with the input that ``network`` (called with the context, if there is one) takes.

    A network that takes floats, and does not turn them into integers, gets levels as floats; any other gets integers,
    as one with an embedding or ``one_hot`` does.

    Raises:
        CompileError: the network takes neither.
    """
    if head.to_input_name is not None:
        return head
    errors, casts = {}, _Casts()
    with eval_mode(network), torch.no_grad():
        for dtype in torch.float32, torch.int64:
            try:
                with casts:
                    network(torch.zeros(shape, dtype=dtype), context)
            except Exception as error:
                errors[dtype] = f"{type(error).__name__}: {error}"
                continue
            return head.reading("index" if casts.found or dtype == torch.int64 else "float")
    floats, integers = errors.values()
    raise CompileError(
        f"the network takes neither floats nor integers {list(shape)} (a batch of two of event_shape "
        f"{tuple(shape[1:])}). Given floats: {floats}. Given integers: {integers}"
    )


class _Casts(TorchDispatchMode):
    """Finds out whether floats are turned into integers."""

    found = False

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        if operator in _CASTS and isinstance(result, Tensor) and args[0].is_floating_point():
            self.found |= not (result.is_floating_point() or result.is_complex() or result.dtype == torch.bool)
        return result
