"""The network that is compiled: a module, and an adapter that takes the head's parameters from its output."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from fastgen.generate.errors import CompileError


class Adapted(nn.Module):
    """``adapter(module(x[, context]))``."""

    def __init__(self, module: nn.Module, adapter: Callable | None) -> None:
        super().__init__()
        self.module, self.adapter = module, adapter

    def forward(self, x, context=None):
        out = self.module(x) if context is None else self.module(x, context)
        return out if self.adapter is None else self.adapter(out)


def usable(module: nn.Module) -> nn.Module:
    """Returns the module, without its wrapper for training on several devices.

    Raises:
        ValueError: it is not a module.
        CompileError: it cannot be traced here, because of its kind or its tensors.
    """
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return usable(module.module)
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"module must be a torch.nn.Module, got a {type(module).__name__}; call it in the forward of a module"
        )
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise CompileError(
                f"{name or 'module'!r} is a torch.jit.{type(part).__name__}, which torch.export cannot take: pass the "
                "Python module that it was made from"
            )
    check_made(module)
    for name, tensor in tensors_of(module).items():
        if tensor.device.type != "cpu":
            raise CompileError(
                f"{name!r} is on device {tensor.device}, and the sampler compiles on the CPU: pass "
                + ("a module that has its weights" if tensor.is_meta else "module.cpu()")
            )
    return module


def check_made(module: nn.Module) -> None:
    """Raises CompileError where a lazy layer has not been made by a first call."""
    for name, tensor in tensors_of(module).items():
        if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
            raise CompileError(f"{name!r} has no shape yet: call the module once, so that its lazy layers are made")


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Returns parameters, buffers and other tensors that are attributes, by their names."""
    return {name: value for name, _, _, value in attributes_of(network) if isinstance(value, Tensor)}


def attributes_of(network: nn.Module) -> Iterator[tuple[str, nn.Module, str, object]]:
    """Yields (full name, submodule, name there, value) of attributes, parameters and buffers."""
    for prefix, part in network.named_modules(remove_duplicate=False):
        held = vars(part) | dict(part._parameters.items()) | dict(part._buffers.items())
        for name, value in held.items():
            yield f"{prefix}.{name}" if prefix else name, part, name, value
