"""Masks: where a network applies them by writing to its weights, or hides positions with a finite number."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.fx import Node as FxNode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fastgen.eval_mode import eval_mode, set_mode
from fastgen.generate.frontend.fx_info import name_of, where_of
from fastgen.generate.frontend.untouched import untouched
from fastgen.generate.frontend.writes import REPEATS, same_values

aten = torch.ops.aten


def freeze_masks(module: nn.Module, example=None) -> nn.Module:
    """Returns a copy of ``module`` whose weights have the masks in them that its forward writes.

    It computes the same.

    A layer that does nothing but write a mask and call its PyTorch base, as in the common public pattern
    ``self.weight.data *= self.mask; return super().forward(x)``, becomes that base. A layer that does more keeps its
    class and writes its mask again, which changes nothing. Which layers write, and whether a base computes the same, is
    seen by calling them: on ``example``, or on random inputs of the layers that derive from a convolution,
    ``nn.Linear`` or ``nn.Embedding``. ``Sampler`` takes networks that write masks as they are; this is for a module
    without the writes.

    Args:
        example: an input of the module, or a tuple of its inputs: the outputs before and after are compared too.

    Raises:
        ValueError: no layer is found that writes to its parameters, or a call changes them further every time, or the
            copy does not compute what the module computes.
    """
    arguments = () if example is None else example if isinstance(example, tuple) else (example,)
    frozen = _copied(module)
    with untouched(module), eval_mode(frozen), torch.no_grad():
        calls = _synthetic_calls(frozen) if example is None else _recorded_calls(frozen, arguments)
        writing = {layer: call for layer, call in calls.items() if _writes(layer, *call)}
        if example is not None and _writes(frozen, arguments, {}):
            writing[frozen] = arguments, {}
        if not writing:
            raise ValueError(
                "module must have a layer whose forward writes to its parameters, and none is found"
                + (": pass example, an input of the module, to have the whole of it called" if example is None else "")
                + ". fastgen.Sampler takes a module as it is"
            )
        for layer, (args, kwargs) in writing.items():
            _settled(layer, args, kwargs)
            base = _base(layer)
            if base is not None and _same(base.forward(layer, *_cloned(args), **kwargs), _call(layer, args, kwargs)):
                layer.__class__ = base
        if example is not None:
            set_mode(module, training=False)
            _settled(module, arguments, {})
            if not _same(_call(module, arguments, {}), _call(frozen, arguments, {})):
                raise ValueError(
                    "module cannot be frozen: its copy computes another output of example, so that something in it, a "
                    "hook perhaps, holds on to the layers of the original. fastgen.Sampler takes it as it is"
                )
    return frozen


class _DetachedCopies(TorchFunctionMode):
    """Lets ``copy.deepcopy`` copy tensors that have a gradient function, as the older weight normalisation keeps."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def _copied(module: nn.Module) -> nn.Module:
    with _DetachedCopies():
        return copy.deepcopy(module)


def _cloned(args: tuple) -> tuple:
    return tree_map_only(Tensor, torch.clone, args)


def _call(layer: nn.Module, args: tuple, kwargs: dict):
    return layer(*_cloned(args), **kwargs)


def _same(a, b) -> bool:
    leaves, others = tree_leaves(a), tree_leaves(b)
    return len(leaves) == len(others) and all(
        same_values(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x is y or x == y
        for x, y in zip(leaves, others, strict=True)
    )


def _base(layer: nn.Module) -> type | None:
    """Returns the class of ``torch.nn`` that a layer derives from, if it has a forward of its own."""
    for base in type(layer).__mro__:
        if base.__module__.startswith("torch.nn.modules") and base is not nn.Module:
            return base if type(layer).forward is not base.forward else None
    return None


def _synthetic_calls(module: nn.Module) -> dict[nn.Module, tuple[tuple, dict]]:
    """Makes random inputs of the layers that derive from a layer of PyTorch's whose inputs are known."""
    generator = torch.Generator().manual_seed(0)
    calls = {}
    for layer in module.modules():
        if _base(layer) is None:
            continue
        if isinstance(layer, nn.Linear):
            x = torch.randn(2, layer.in_features, generator=generator)
        elif isinstance(layer, nn.Embedding):
            x = torch.arange(layer.num_embeddings)
        elif isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            sizes = [d * (k - 1) + 3 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
            x = torch.randn(1, layer.in_channels, *sizes, generator=generator)
        else:
            continue
        x = x.to(layer.weight.dtype) if x.is_floating_point() else x
        try:
            layer(x)
        except (TypeError, RuntimeError):  # takes something else
            continue
        calls[layer] = (x,), {}
    return calls


def _recorded_calls(module: nn.Module, arguments: tuple) -> dict[nn.Module, tuple[tuple, dict]]:
    """Returns the inputs of the first call of each layer that derives from PyTorch's, as ``module`` gives them."""
    calls: dict[nn.Module, tuple[tuple, dict]] = {}

    def record(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        calls.setdefault(layer, (_cloned(args), kwargs))

    layers = [layer for layer in module.modules() if _base(layer) is not None]
    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    try:
        _call(module, arguments, {})
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _writes(layer: nn.Module, args: tuple, kwargs: dict) -> bool:
    """Whether a call changes parameters, when they have random values."""
    probe = _copied(layer)
    generator = torch.Generator().manual_seed(1)
    for parameter in probe.parameters():
        if parameter.is_floating_point():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    before = {name: parameter.clone() for name, parameter in probe.named_parameters()}
    _call(probe, args, kwargs)
    return any(not same_values(parameter, before[name]) for name, parameter in probe.named_parameters())


def _settled(layer: nn.Module, args: tuple, kwargs: dict) -> None:
    """Calls a layer until a call leaves its parameters as they are."""
    for _ in range(REPEATS):
        before = {name: parameter.clone() for name, parameter in layer.named_parameters()}
        _call(layer, args, kwargs)
        changed = [name for name, p in layer.named_parameters() if not same_values(p, before[name])]
        if not changed:
            return
    raise ValueError(f"module cannot be frozen: forward changes {', '.join(map(repr, changed))} at every call")


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


def finite_mask(nodes: Iterable[FxNode], state: dict[str, Tensor]) -> str:
    """Returns a remark for a refusal where a softmax is masked with a large finite number; empty where none is."""
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
                return (
                    f" A softmax is masked with the finite number {number:g} at {name_of(node)}, {where_of(node)}: "
                    "that masked positions get no weight cannot be shown for all scores. Mask with float('-inf')."
                )
    return ""
