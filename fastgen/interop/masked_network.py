"""Checks whether the units of a library's masked network can be computed degree by degree."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.interop.eligible import is_transformed
from fastgen.ops.precision import is_autocast

_NAMES: dict[Callable, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.tanh: "tanh",
    F.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    F.elu: "elu",
}
_MODULES: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.ELU: "elu"}
_OTHERS = (F.gelu, F.silu, F.leaky_relu, F.softplus, F.mish, F.selu)
_OTHER_MODULES = (nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Softplus, nn.Mish, nn.SELU)


def activation_name(activation: Callable) -> str | None:
    """Returns the name of the activation in ``fastgen.ops.sequential_affine``; None if it has none."""
    if isinstance(activation, nn.ELU) and activation.alpha != 1:
        return None
    if isinstance(activation, nn.Module):
        return _MODULES.get(type(activation))
    return next((name for function, name in _NAMES.items() if function is activation), None)


def is_elementwise(activation: Callable) -> bool:
    """Returns whether the module is known to act on every unit alone, deterministically, and not in place."""
    if isinstance(activation, nn.Module):
        return type(activation) in (*_MODULES, *_OTHER_MODULES) and not getattr(activation, "inplace", False)
    return any(function is activation for function in (*_NAMES, *_OTHERS))


def is_plain(network: nn.Module) -> bool:
    """Returns whether calling the network only runs its modules' ``forward``: no hooks, no autocast."""
    if is_transformed():
        return False
    if any(m._forward_hooks or m._forward_pre_hooks for m in network.modules()):
        return False
    return not any(is_autocast(p) for p in network.parameters())


def is_recorded(network: nn.Module, *tensors: Tensor | None) -> bool:
    """Returns whether gradients are recorded for a parameter of the network, or for one of the tensors."""
    if not torch.is_grad_enabled():
        return False
    return any(t is not None and t.requires_grad for t in (*tensors, *network.parameters()))


def is_mask_of(mask: Tensor, outputs: Tensor, inputs: Tensor, *, strict: bool = False) -> bool:
    """Returns whether the mask lets ``outputs`` see ``inputs`` of degrees up to their own; ``strict``, below it."""
    if mask.shape != (len(outputs), len(inputs)):
        return False
    wanted = outputs[:, None] > inputs if strict else outputs[:, None] >= inputs
    return torch.equal(mask, wanted.to(mask.dtype))


def with_values(found: Tensor, values: Tensor) -> Tensor:
    """Returns more exact values with the gradient of those that were found."""
    return found + (values - found).detach() if found.requires_grad else values
