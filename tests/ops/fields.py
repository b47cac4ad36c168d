"""Fields to test traces on, and what is asked of them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops import DenseField
from fastgen.ops.field import Field

SIZES = [(3, 5, 3), (4, 6, 5, 4), (4, 6, 5, 7, 4), (1, 4, 1)]


def dense(sizes: tuple[int, ...], activation: str = "tanh", dtype: torch.dtype = torch.float64) -> DenseField:
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    outs = zip(sizes[1:], sizes[:-1], strict=True)
    return DenseField([make(out, width) for out, width in outs], [make(out) for out in sizes[1:]], activation)


def jacobian(f, x: Tensor) -> Tensor:
    """[N, D, D]."""
    numbers = x[0].numel()
    of_one = torch.func.jacrev(lambda one: f(one[None])[0])
    return torch.stack([of_one(one).reshape(numbers, numbers) for one in x])


def field_and_callable(sizes: tuple[int, ...], activation: str = "tanh"):
    field = dense(sizes, activation)
    return field, lambda x: field(x)


def gradients(outputs: tuple[Tensor, Tensor], inputs: list[Tensor], **keep) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o in outputs]
    return torch.autograd.grad(outputs, inputs, weights, materialize_grads=True, **keep)


def leaves(field: Field, x: Tensor) -> list[Tensor]:
    return [x, *field.weights, *field.biases]


def parameters(field: Field) -> list[Tensor]:
    """Weight, bias, weight, bias, ..."""
    return [tensor for layer in zip(field.weights, field.biases, strict=True) for tensor in layer]
