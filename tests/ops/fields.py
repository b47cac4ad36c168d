"""Fields to test traces on, and what is asked of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgen.ops import ConvField, DenseField
from fastgen.ops.field import Field

SIZES = [(3, 5, 3), (4, 6, 5, 4), (4, 6, 5, 7, 4), (1, 4, 1)]


def dense(sizes: tuple[int, ...], activation: str = "tanh", dtype: torch.dtype = torch.float64) -> DenseField:
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    outs = zip(sizes[1:], sizes[:-1], strict=True)
    return DenseField([make(out, width) for out, width in outs], [make(out) for out in sizes[1:]], activation)


def convolutional(
    channels: tuple[int, ...] = (2, 3, 4, 2),
    kernels: tuple[tuple[int, int], ...] = ((3, 3), (1, 1), (5, 3)),
    activation: str = "tanh",
    dtype: torch.dtype = torch.float64,
) -> ConvField:
    """With weights about as large as an initialisation makes them, biases of both kinds, and borders."""
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()

    shapes = [(out, width, *kernel) for out, width, kernel in zip(channels[1:], channels[:-1], kernels, strict=True)]
    weights = [make(*shape, scale=2 / math.sqrt(math.prod(shape[1:]))) for shape in shapes]
    return ConvField(weights, [make(out) for out in channels[1:]], activation, [make(s[0], 1, *s[2:]) for s in shapes])


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
    return [x, *field.weights, *field.biases, *(getattr(field, "borders", None) or [])]


def parameters(field: Field) -> list[Tensor]:
    """Weight, bias, weight, bias, ..."""
    return [tensor for layer in zip(field.weights, field.biases, strict=True) for tensor in layer]
