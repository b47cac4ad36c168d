"""A field as one solve takes it: what does not depend on the time is gathered once, not at every evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastgen.nn.fields import MLPField
from fastgen.ops.dense_field import DenseField


class SolvedField:
    """Any field, called with the context: ``at(t)`` is f(., t), ``parameters`` what its gradient may be wanted of."""

    def __init__(self, field: Callable[..., Tensor], context: Tensor | None) -> None:
        self.field, self.context = field, () if context is None else (context,)
        given = [*(field.parameters() if isinstance(field, nn.Module) else ()), *self.context]
        self.parameters = [tensor for tensor in given if tensor.requires_grad]

    def at(self, t: float | Tensor) -> Callable[[Tensor], Tensor]:
        at = getattr(self.field, "at", None)
        return at(t, *self.context) if callable(at) else lambda x: self.field(x, t, *self.context)


class SolvedMLPField:
    """An ``MLPField``: its weights are one vector w, its biases another, b, and at time t they are::

        w sigmoid(scale t + offset)             b sigmoid(scale t + offset) + shift t

    with a scale, an offset and a shift for each output of a layer; a context adds to b of the first layer. The gradient
    is written by hand. It has none in the time, and can be differentiated once: that is what the adjoint needs, but not
    a derivative through the steps of a solver.

    Attributes:
        parameters: these vectors, which autograd knows as functions of the field's own.
    """

    def __init__(self, field: MLPField, context: Tensor | None) -> None:
        with torch.no_grad():
            field.at(0.0, context)  # for its checks
        weights, biases = [layer.weight for layer in field.layers], [layer.bias for layer in field.layers]
        shift = scale = offset = conditioned = None
        if field.time == "concat":
            shift = torch.cat([weight[:, 0] for weight in weights])
            weights = [weight[:, 1:] for weight in weights]
        elif field.time == "concat-squash":
            shift = torch.cat([each.weight[:, 0] for each in field.shifts])
            scale = torch.cat([gate.weight[:, 0] for gate in field.gates])
            offset = torch.cat([gate.bias for gate in field.gates])
        if context is not None:
            weights[0], across = weights[0].tensor_split([-field.context_features], 1)
            conditioned = context.to(across.dtype) @ across.t()
        flat = torch.cat([weight.flatten() for weight in weights])
        self.activation, self.sizes = field.activation, field.sizes
        self.given = (flat, torch.cat(biases), shift, scale, offset, conditioned)
        self.parameters = [tensor for tensor in self.given if tensor is not None and tensor.requires_grad]

    def at(self, t: float | Tensor) -> DenseField:
        parts = _AtTime.apply(t, self.sizes, *self.given)
        layers = len(self.sizes) - 1
        return DenseField(parts[:layers], parts[layers:], self.activation)


def solved_field(
    field: Callable[..., Tensor], context: Tensor | None, *, by_steps: bool
) -> SolvedField | SolvedMLPField:
    """The field for one solve; ``by_steps``: what is computed will be differentiated through the solver's steps."""
    if isinstance(field, MLPField) and not by_steps:
        return SolvedMLPField(field, context)
    return SolvedField(field, context)


@functools.lru_cache(maxsize=64)
def _outputs(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Of every number in the weights the output of a layer that it belongs to, counted through all layers."""
    return (
        torch.arange(sum(sizes[1:]))
        .repeat_interleave(torch.tensor([width for width, out in pairwise(sizes) for _ in range(out)]))
        .to(device)
    )


class _AtTime(torch.autograd.Function):
    """The weights, then the biases at a time."""

    @staticmethod
    def forward(
        ctx,
        t: float | Tensor,
        sizes: tuple[int, ...],
        weights: Tensor,
        biases: Tensor,
        shift: Tensor | None,
        scale: Tensor | None,
        offset: Tensor | None,
        conditioned: Tensor | None,
    ) -> tuple[Tensor, ...]:
        gate = spread = None
        weights_now, biases_now = weights, biases
        if scale is not None:
            gate = torch.sigmoid(offset + scale * t)
            spread = gate.index_select(0, _outputs(sizes, weights.device))
            weights_now, biases_now = weights * spread, biases * gate
        if shift is not None:
            biases_now = biases_now + shift * t
        layers = list(pairwise(sizes))
        parts = weights_now.split_with_sizes([width * out for width, out in layers])
        each = list(biases_now.split_with_sizes(sizes[1:]))
        if conditioned is not None:
            each[0] = each[0] + (conditioned if gate is None else gate[: sizes[1]] * conditioned)
        ctx.t, ctx.sizes, ctx.shifted = t, sizes, shift is not None
        ctx.save_for_backward(weights, biases, gate, spread, conditioned)
        return *(part.view(out, width) for part, (width, out) in zip(parts, layers, strict=True)), *each

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weights, biases, gate, spread, conditioned = ctx.saved_tensors
        layers, first = len(ctx.sizes) - 1, ctx.sizes[1]
        of_weights = torch.cat([part.flatten() for part in gradients[:layers]])
        each, of_conditioned = list(gradients[layers:]), None
        if conditioned is not None:
            of_conditioned, each[0] = each[0], each[0].sum(0)
        of_biases = torch.cat(each)
        of_shift = of_biases * ctx.t if ctx.shifted else None
        if gate is None:
            return None, None, of_weights, of_biases, of_shift, None, None, of_conditioned
        of_gate = (of_biases * biases).index_add_(0, _outputs(ctx.sizes, weights.device), of_weights * weights)
        if conditioned is not None:
            of_gate[:first] += (of_conditioned * conditioned).sum(0)
            of_conditioned = of_conditioned * gate[:first]
        of_offset = of_gate * gate * (1 - gate)
        of_scale = of_offset * ctx.t
        return None, None, of_weights * spread, of_biases * gate, of_shift, of_scale, of_offset, of_conditioned
