"""The inverse of zuko's masked autoregressive transforms, without a pass of the network for every feature."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.flows.spline import CircularRQSTransform
from zuko.nn import MaskedLinear, MaskedMLP, Residual
from zuko.transforms import AutoregressiveTransform, MonotonicAffineTransform, MonotonicRQSTransform
from zuko.utils import broadcast, unpack

from fastgen.interop.eligible import eligible
from fastgen.interop.masked_network import activation_name, is_elementwise, is_mask_of, is_plain, with_values
from fastgen.nn.autoregressive.sequential_inverse import MaskedMap, invert_by_degree
from fastgen.ops import sequential_affine

_inverse = AutoregressiveTransform._inverse
_meta = MaskedAutoregressiveTransform.meta
_UNIVARIATE = MonotonicAffineTransform, MonotonicRQSTransform, CircularRQSTransform
"""Univariate transforms that treat every feature by its own parameters alone."""
_FEW = 3
"""Number of passes up to which zuko's loop is as fast: the other way also ends with a pass of zuko's."""


@functools.wraps(_inverse)
def inverse(self, y):
    meta = self.meta
    owner = getattr(getattr(meta, "func", None), "__self__", None)
    if not (isinstance(owner, MaskedAutoregressiveTransform) and getattr(meta.func, "__func__", None) is _meta):
        return _inverse(self, y)
    if len(meta.args) != 1 or meta.keywords or not isinstance(y, Tensor):
        return _inverse(self, y)
    found = _solution(owner, self.passes, y, *meta.args)
    if found is None:
        return _inverse(self, y)
    with torch.no_grad():  # zuko's own last pass, so that its forward gives y back to the last bits
        last = self.meta(found.detach()).inv(y)
    return with_values(found, last)


def _solution(owner: MaskedAutoregressiveTransform, passes: int, y: Tensor, context: Tensor | None) -> Tensor | None:
    """Returns x, or None where only zuko's own code finds it."""
    if type(owner.hyper) is not MaskedMLP or not is_plain(owner.hyper):
        return None
    if _function(owner) not in _UNIVARIATE or owner.order is None:
        return None
    degrees = owner.order + 1
    if y.dim() < 1 or y.shape[-1] != len(degrees) or not y.numel():
        return None
    if passes < int(degrees.max()) or passes <= _FEW:
        return None
    if len({t.dtype for t in (y, *owner.hyper.parameters())}) != 1:
        return None
    of_layers = _degrees(owner.hyper, degrees, owner.total)
    width = owner.hyper[0].in_features - len(degrees)
    if of_layers is None or (0 if context is None else context.shape[-1]) != width:
        return None
    offset = None
    if context is not None:
        y, context = broadcast(y, context, ignore=1)
        offset = F.linear(context.reshape(-1, width), owner.hyper[0].weight[:, len(degrees) :])
    u = y.reshape(-1, len(degrees))
    x = _in_one_pass(owner, u, offset, of_layers)
    if x is None:
        x = _by_degree(owner, u, offset, of_layers)
    return x.reshape(y.shape)


def _function(owner: MaskedAutoregressiveTransform):
    """Returns the class of the univariate transform; None if it is given more than its slope."""
    univariate = owner.univariate
    if not isinstance(univariate, functools.partial):
        return univariate
    return univariate.func if not univariate.args and set(univariate.keywords) <= {"slope"} else None


def _degrees(network: MaskedMLP, features: Tensor, total: int) -> list[Tensor] | None:
    """Returns the degrees of the features and of every module's outputs but the last; None for other masks."""
    found, (*hidden, last) = [features], network
    for module in hidden:
        before = found[-1]
        if type(module) is MaskedLinear:
            after = _degrees_after(module, before)
        elif type(module) is Residual and [type(m) for m in module][::2] == [MaskedLinear] * 2 and len(module) == 3:
            inner = _degrees_after(module[0], before)
            after = None if inner is None else _degrees_after(module[2], inner)
            if after is None or not is_elementwise(module[1]) or not torch.equal(after, before):
                return None
        else:
            after = before if is_elementwise(module) else None
        if after is None:
            return None
        found.append(after)
    if not hidden or type(last) is not MaskedLinear:
        return None
    return found if is_mask_of(last.mask, features.repeat_interleave(total), found[-1], strict=True) else None


def _degrees_after(linear: MaskedLinear, before: Tensor) -> Tensor | None:
    """Returns the degrees of a masked linear map's units: the highest they see. All see the context."""
    mask = linear.mask[:, : len(before)]
    after = (mask * before).amax(1)
    is_known = linear.bias is not None and is_mask_of(mask, after, before) and bool(linear.mask[:, len(before) :].all())
    return after if is_known else None


def _in_one_pass(
    owner: MaskedAutoregressiveTransform, u: Tensor, offset: Tensor | None, degrees: list[Tensor]
) -> Tensor | None:
    """Solves by ``sequential_affine``, for affine transforms whose network alternates linear maps and activations."""
    *hidden, last = owner.hyper
    names = {activation_name(module) for module in hidden[1::2]}
    stack = len(hidden) % 2 == 0 and all(type(module) is MaskedLinear for module in hidden[::2])
    slope = _slope(owner)
    if not stack or len(names) != 1 or None in names or slope is None:
        return None
    weights = [module.weight for module in hidden[::2]]
    weights[0] = weights[0][:, : u.shape[1]]
    biases = [module.bias for module in hidden[::2]]
    for tensors, final in ((weights, last.weight), (biases, last.bias)):
        tensors.append(torch.cat([final[0::2], final[1::2]]))
    parameters = [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]
    if not eligible("sequential_affine", u, *parameters, *([] if offset is None else [offset])):
        return None
    features, *others = degrees[0], *degrees[1::2]
    up_to = torch.bincount(features).cumsum(0)  # features of the same degree one after another, which changes nothing
    x, _ = sequential_affine(
        u,
        parameters,
        [features.argsort(stable=True).argsort() + 1, *(up_to[degree] for degree in others)],
        context=offset,
        activation=names.pop(),
        parameterisation="bounded",
        bound=-math.log(slope),
    )
    return x


def _slope(owner: MaskedAutoregressiveTransform) -> float | None:
    """Returns the least slope of an affine transform; None for another transform or one without a kernel."""
    if _function(owner) is not MonotonicAffineTransform or [tuple(shape) for shape in owner.shapes] != [(), ()]:
        return None
    slope = getattr(owner.univariate, "keywords", {}).get("slope", 1e-3)
    return slope if isinstance(slope, float) and 0 < slope < 1 else None


def _by_degree(owner: MaskedAutoregressiveTransform, u: Tensor, offset: Tensor | None, degrees: list[Tensor]) -> Tensor:
    *modules, last = owner.hyper
    maps = []

    def add(layer: MaskedLinear, before: Tensor, after: Tensor, offset: Tensor | None = None) -> None:
        maps.append(MaskedMap(layer.weight[:, : len(before)], layer.bias, before, after, offset))

    for module, (before, after) in zip(modules, pairwise(degrees), strict=True):
        if type(module) is MaskedLinear:
            add(module, before, after, None if maps else offset)
        elif type(module) is Residual:
            inner = _degrees_after(module[0], before)
            add(module[0], before, inner)
            add(module[2], inner, after)
    add(last, degrees[-1], degrees[0].repeat_interleave(owner.total) - 1)

    def run(x: Tensor, linear: Callable[[int, Tensor], Tensor]) -> Tensor:
        i = 0
        for module in modules:
            if type(module) is MaskedLinear:
                x, i = linear(i, x), i + 1
            elif type(module) is Residual:
                x, i = x + linear(i + 1, module[1](linear(i, x))), i + 2
            else:
                x = module(x)
        return linear(i, x)

    def invert(u: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return owner.univariate(*unpack(parameters, owner.shapes)).inv(u), u.new_zeros(())

    return invert_by_degree(u, degrees[0], maps, run, invert)[0]
