"""Masks: where a network applies them by writing to its weights, or hides positions with a finite number."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.fx import Node as FxNode

from fastgen.generate.errors import CompileError
from fastgen.generate.places import name_of, where_of

aten = torch.ops.aten


def freeze_masks(module: nn.Module) -> nn.Module:
    """A copy of ``module`` whose masked layers multiply by their mask in a differentiable way.

    For the common public pattern ``self.weight.data *= self.mask; return super().forward(x)``: every submodule that has
    both a ``weight`` and a buffer or attribute ``mask`` of its shape gets ``weight * mask`` folded in, and its forward
    no longer writes.

    Raises:
        ValueError: nothing in ``module`` follows the pattern.
    """
    frozen = copy.deepcopy(module)
    found = 0
    for layer in frozen.modules():
        mask, weight = getattr(layer, "mask", None), getattr(layer, "weight", None)
        if isinstance(mask, Tensor) and isinstance(weight, Tensor) and mask.shape == weight.shape:
            base = next((b for b in type(layer).__mro__ if b.__module__.startswith("torch.nn")), None)
            if base is None:
                continue
            with torch.no_grad():
                weight.mul_(mask.to(weight.dtype))
            layer.__class__ = base
            found += 1
    if not found:
        raise ValueError("module has no layer with a `weight` and a `mask` of its shape; nothing to freeze")
    return frozen


def _finite_mask(node: FxNode, number: float) -> bool:
    """Whether a masked fill or added mask of ``number`` reaches a softmax."""
    if not -1e30 < number <= -1e3:
        return False
    pending, seen = [node], set()
    while pending:
        for user in pending.pop().users:
            if user in seen:
                continue
            seen.add(user)
            if user.target in (aten.softmax.int, aten._softmax.default, aten.log_softmax.int):
                return True
            if user.target in (
                aten.add.Tensor,
                aten.mul.Tensor,
                aten.view.default,
                aten.expand.default,
                aten._to_copy.default,
            ):
                pending.append(user)
    return False


_MASKING = (
    aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf,
    aten.add.Tensor, aten.sub.Tensor,
)  # fmt: skip


def check_softmax_masks(nodes: Iterable[FxNode], state: dict[str, Tensor]) -> None:
    """Raises CompileError where a softmax is masked with a large finite number."""
    for node in nodes:
        if node.target not in _MASKING:
            continue
        for argument in (*node.args, *node.kwargs.values()):
            number = argument
            if isinstance(argument, FxNode) and argument.name in state:
                tensor = state[argument.name]
                finite = tensor[torch.isfinite(tensor)] if tensor.is_floating_point() else tensor[:0]
                number = float(finite.min()) if finite.numel() else None
            if isinstance(number, (int, float)) and _finite_mask(node, number):
                raise CompileError(
                    f"a softmax is masked with the finite number {number:g} at {name_of(node)}, {where_of(node)}: "
                    'masked positions keep a weight. Mask with float("-inf").'
                )
