"""A field as one solve takes it: what does not depend on the time is gathered once, not at every evaluation."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastgen.nn.continuous.mlp_field import MLPField
from fastgen.ops.dense_field import DenseField


class SolvedField:
    """Any field, called with the context.

    Attributes:
        parameters: what its gradient may be wanted of.
    """

    def __init__(self, field: Callable[..., Tensor], context: Tensor | None) -> None:
        self.field, self.context = field, () if context is None else (context,)
        given = [*(field.parameters() if isinstance(field, nn.Module) else ()), *self.context]
        self.parameters = [tensor for tensor in given if tensor.requires_grad]

    def at(self, times: Sequence[float | Tensor]) -> list[Callable[[Tensor], Tensor]]:
        """f(., t) of each t."""
        at = getattr(self.field, "at", None)
        if callable(at):
            return [at(t, *self.context) for t in times]
        return [functools.partial(self._value, t) for t in times]

    def _value(self, t: float | Tensor, x: Tensor) -> Tensor:
        return self.field(x, t, *self.context)


class SolvedMLPField:
    """An ``MLPField``: its weights are one vector w, its biases another, b, and at time t they are::

        w sigmoid(scale t + offset)             b sigmoid(scale t + offset) + shift t

    with a scale, an offset and a shift for each output of a layer; a context adds to b of the first layer. The gradient
    is written by hand. It has none in the time, and can be differentiated once: that is what an adjoint needs, but not
    a derivative through an adaptive solver's steps.

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

    def at(self, times: Sequence[float | Tensor]) -> list[DenseField]:
        """f(., t) of each t, for all at once."""
        parts = _AtTimes.apply(tuple(times), self.sizes, *self.given)
        layers = len(self.sizes) - 1
        weights, biases = parts[: layers * len(times)], parts[layers * len(times) :]
        each = [slice(i * layers, (i + 1) * layers) for i in range(len(times))]
        return [DenseField(weights[part], biases[part], self.activation) for part in each]


def solved_field(
    field: Callable[..., Tensor], context: Tensor | None, *, through: bool
) -> SolvedField | SolvedMLPField:
    """The field for one solve; ``through``: what is computed will be differentiated through the solver's steps."""
    if type(field) is MLPField and not through:  # a subclass may have another forward
        return SolvedMLPField(field, context)
    return SolvedField(field, context)


@functools.lru_cache(maxsize=64)
def _outputs(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Returns, for every number in the weights, its output of a layer, counted through all layers."""
    return (
        torch.arange(sum(sizes[1:]))
        .repeat_interleave(torch.tensor([width for width, out in pairwise(sizes) for _ in range(out)]))
        .to(device)
    )


class _AtTimes(torch.autograd.Function):
    """The weights of all layers at the first time, at the next, ...; then the biases."""

    @staticmethod
    def forward(
        ctx,
        times: tuple[float | Tensor, ...],
        sizes: tuple[int, ...],
        weights: Tensor,
        biases: Tensor,
        shift: Tensor | None,
        scale: Tensor | None,
        offset: Tensor | None,
        conditioned: Tensor | None,
    ) -> tuple[Tensor, ...]:
        like = {"dtype": weights.dtype, "device": weights.device}
        t = torch.stack(times).to(**like) if isinstance(times[0], Tensor) else torch.tensor(times, **like)
        t = t[:, None]
        gate = spread = None
        weights_now, biases_now = weights.expand(len(t), -1), biases.expand(len(t), -1)
        if scale is not None:
            gate = torch.addcmul(offset, scale, t).sigmoid_()
            spread = gate.index_select(1, _outputs(sizes, weights.device))
            weights_now, biases_now = weights * spread, biases * gate
        if shift is not None:
            biases_now = torch.addcmul(biases_now, shift, t)
        layers = list(pairwise(sizes))
        parts = weights_now.split_with_sizes([width * out for width, out in layers], 1)
        parts = [part.view(-1, out, width).unbind() for part, (width, out) in zip(parts, layers, strict=True)]
        each = [part.unbind() for part in biases_now.split_with_sizes(sizes[1:], 1)]
        if conditioned is not None:
            added = [conditioned] * len(t) if gate is None else [row * conditioned for row in gate[:, : sizes[1]]]
            each[0] = [bias + more for bias, more in zip(each[0], added, strict=True)]
        ctx.sizes, ctx.shifted = sizes, shift is not None
        ctx.save_for_backward(t, weights, biases, gate, spread, conditioned)
        return *itertools.chain(*zip(*parts, strict=True)), *itertools.chain(*zip(*each, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        t, weights, biases, gate, spread, conditioned = ctx.saved_tensors
        layers, first = len(ctx.sizes) - 1, ctx.sizes[1]
        half = layers * len(t)
        of_weights = torch.cat([part.flatten() for part in gradients[:half]]).view(len(t), -1)
        each, of_conditioned = list(gradients[half:]), None
        if conditioned is not None:
            of_conditioned = torch.stack(each[::layers])
            each[::layers] = of_conditioned.sum(1)
        of_biases = torch.cat(each).view(len(t), -1)
        of_shift = (of_biases * t).sum(0) if ctx.shifted else None
        if gate is None:
            found = of_weights.sum(0), of_biases.sum(0), of_shift, None, None
            return None, None, *found, None if conditioned is None else of_conditioned.sum(0)
        parts = (of_weights * weights).split_with_sizes([w * out for w, out in pairwise(ctx.sizes)], 1)
        sums = [part.view(len(t), out, -1).sum(2) for part, out in zip(parts, ctx.sizes[1:], strict=True)]
        of_gate = torch.cat(sums, 1).addcmul_(of_biases, biases)
        if conditioned is not None:
            of_gate[:, :first] += (of_conditioned * conditioned).sum(1)
            of_conditioned = (of_conditioned * gate[:, None, :first]).sum(0)
        of_offset = of_gate * (gate - gate * gate)
        found = (of_weights * spread).sum(0), (of_biases * gate).sum(0), of_shift
        return None, None, *found, (of_offset * t).sum(0), of_offset.sum(0), of_conditioned
