"""Derivatives of ops: a pair of autograd Functions for each op, with the derivatives of the reference formula.

``torch.library.register_autograd`` alone leaves ``torch.func`` without a rule (``func.jvp`` silently returns zeros),
and ``torch.compile`` takes no Function with ``vmap`` and ``jvp``; so an op has both, and the compiler sees the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastgen.ops.registry import Op

VmapRule = Callable[[Callable, int, Sequence[int | None], Sequence], tuple]
"""(function, batch size, dimensions, arguments) -> (outputs, their dimensions)."""


def leading(function: Callable, size: int, in_dims: Sequence[int | None], arguments: Sequence) -> tuple:
    """vmap rule of ops that treat leading dimensions alike: adds one in front of every tensor."""
    moved = [
        argument
        if not isinstance(argument, Tensor)
        else argument.expand(size, *argument.shape)
        if dim is None
        else argument.movedim(dim, 0)
        for argument, dim in zip(arguments, in_dims, strict=True)
    ]
    outputs = function(*moved)
    return outputs, tuple(0 for _ in outputs) if isinstance(outputs, tuple) else 0


def loop(function: Callable, size: int, in_dims: Sequence[int | None], arguments: Sequence) -> tuple:
    """vmap rule that calls once for each element of the batch; for an empty batch once with zeros, for the shapes."""
    if not size:
        arguments = [
            a if dim is None else a.new_zeros(*a.shape[:dim], 1, *a.shape[dim + 1 :])
            for a, dim in zip(arguments, in_dims, strict=True)
        ]
    rows = [
        function(*[a if dim is None else a.select(dim, i) for a, dim in zip(arguments, in_dims, strict=True)])
        for i in range(max(size, 1))
    ]
    if isinstance(rows[0], tuple):
        return tuple(torch.stack(column)[:size] for column in zip(*rows, strict=True)), tuple(0 for _ in rows[0])
    return torch.stack(rows)[:size], 0


def differentiable(op: Op, backward: Op, vmap: VmapRule) -> Callable:
    """Returns the op as a function that every kind of differentiation goes through.

    Args:
        op: a function of tensors and of other arguments, which have no derivative.
        backward: takes one gradient for each output of ``op``, then its arguments; returns the gradients of the op's
            floating-point tensor arguments, in their order.
        vmap: how both are batched.
    """

    def twice(inputs, gradients):
        return _vjp(backward.reference, inputs, gradients)

    second = _function(backward, backward.reference, twice, vmap)
    first = _function(op, op.reference, lambda inputs, gradients: _call(backward, second, gradients + inputs), vmap)
    _register(op, lambda inputs, gradients: backward(*gradients, *inputs))
    _register(backward, twice)
    return lambda *arguments: _call(op, first, arguments)


def _call(op: Op, function: type[torch.autograd.Function], arguments: tuple):
    if torch.compiler.is_compiling():
        return op(*arguments)
    return function.apply(*arguments) if _is_recorded(arguments) else _below_autograd(op, arguments)


def backward_of(reference: Callable, outputs: int) -> Callable:
    """Returns the definition of an op's backward: the derivative of the reference, from gradients and arguments."""
    return lambda *arguments: _vjp(reference, arguments[outputs:], arguments[:outputs])


def _is_recorded(arguments: Sequence) -> bool:
    """Returns whether the call is differentiated or batched in any way."""
    if torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments)


def _below_autograd(op: Op, arguments: Sequence):
    """Calls the op below autograd, which saves about 80 us on the CPU."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def _is_float(argument) -> bool:
    return isinstance(argument, Tensor) and argument.is_floating_point()


def _places(arguments: Sequence) -> list[int]:
    return [i for i, argument in enumerate(arguments) if _is_float(argument)]


def _of_floats(function: Callable, arguments: Sequence) -> tuple[Callable, list[Tensor]]:
    """Returns ``function`` of its floating-point tensors alone, and those tensors."""
    places = _places(arguments)

    def partial(*tensors):
        filled = list(arguments)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return function(*filled)

    return partial, [arguments[place] for place in places]


def _vjp(function: Callable, arguments: Sequence, gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
    partial, tensors = _of_floats(function, arguments)
    outputs, pull = torch.func.vjp(partial, *tensors)[:2]
    return pull(tuple(gradients) if isinstance(outputs, tuple) else gradients[0])


def push_forward(function: Callable, arguments: Sequence, tangents: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
    """Computes forward mode by transposing reverse mode, without nested forward levels."""
    partial, tensors = _of_floats(function, arguments)
    outputs, pull = torch.func.vjp(partial, *tensors)[:2]
    zeros = tuple(torch.zeros_like(o) for o in outputs) if isinstance(outputs, tuple) else torch.zeros_like(outputs)
    push = torch.func.vjp(pull, zeros)[1]
    (pushed,) = push(tuple(tangents))
    return pushed


def _spread(arguments: Sequence, gradients: Tensor | Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Returns the gradients of the floating-point tensors at the places of their arguments, None elsewhere."""
    found = iter((gradients,) if isinstance(gradients, Tensor) else gradients)
    return tuple(next(found) if _is_float(argument) else None for argument in arguments)


def _function(op: Op, reference: Callable, pull: Callable, rule: VmapRule) -> type[torch.autograd.Function]:
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*arguments):
            return _below_autograd(op, arguments)

        @staticmethod
        def setup_context(ctx, inputs, output):
            tensors = [a for a in inputs if isinstance(a, Tensor)]
            ctx.save_for_backward(*tensors)
            ctx.save_for_forward(*tensors)
            ctx.others = [None if isinstance(a, Tensor) else (a,) for a in inputs]

        @staticmethod
        def backward(ctx, *gradients):
            inputs = _inputs(ctx)
            return _spread(inputs, pull(inputs, gradients))

        @staticmethod
        def jvp(ctx, *tangents):
            inputs = _inputs(ctx)
            given = [
                torch.zeros_like(a) if t is None else t for a, t in zip(inputs, tangents, strict=True) if _is_float(a)
            ]
            return push_forward(reference, inputs, given)

        @staticmethod
        def vmap(info, in_dims, *arguments):
            return rule(Function.apply, info.batch_size, in_dims, arguments)

    Function.__name__ = Function.__qualname__ = op.name
    return Function


def _inputs(ctx) -> tuple:
    tensors = iter(ctx.saved_tensors)
    return tuple(next(tensors) if other is None else other[0] for other in ctx.others)


def _register(op: Op, pull: Callable) -> None:
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*[a for a in inputs if isinstance(a, Tensor)])
        ctx.others = [None if isinstance(a, Tensor) else (a,) for a in inputs]

    def backward(ctx, *gradients):
        inputs = _inputs(ctx)
        return _spread(inputs, pull(inputs, gradients))

    torch.library.register_autograd(f"fastgen::{op.name}", backward, setup_context=setup_context)
