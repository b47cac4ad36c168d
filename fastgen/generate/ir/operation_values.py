"""The operations of lane programs, in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastgen.generate.ir.instructions import Operation

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        name: getattr(torch, name)
        for name in ("neg", "abs", "exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "reciprocal")
    },
    **{
        name: getattr(torch, name)
        for name in ("tanh", "sigmoid", "erf", "sin", "cos", "floor", "ceil", "round", "sign", "relu", "trunc")
    },
    "gelu": torch.nn.functional.gelu,
}

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{name: getattr(torch, name) for name in ("add", "sub", "mul", "div", "pow", "lt", "le", "eq", "ne")},
    **{name: getattr(torch, name) for name in ("fmod", "remainder", "floor_divide")},
    "bitand": lambda a, b: a.long() & b.long(),
    "bitor": lambda a, b: a.long() | b.long(),
    "bitxor": lambda a, b: a.long() ^ b.long(),
    "max": torch.maximum,
    "min": torch.minimum,
}

_SCALAR: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "elu": lambda a, x, y: torch.where(a > 0, a, x * torch.expm1(a)),
    "leaky_relu": lambda a, x, y: torch.where(a > 0, a, x * a),
    "softplus": lambda a, x, y: torch.where(a * x > y, a, torch.log1p(torch.exp(a * x)) / x),
    "addc": lambda a, x, y: a + x,
    "mulc": lambda a, x, y: a * x,
    "clamp": lambda a, x, y: torch.clamp(a, x, y),
}

_REDUCE: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda a: a.sum(-1, keepdim=True),
    "amax": lambda a: a.amax(-1, keepdim=True),
    "amin": lambda a: a.amin(-1, keepdim=True),
}


def apply_operation(name: str, operation: Operation, registers: list[Tensor]) -> Tensor:
    """Returns the result of one operation on all lanes."""
    a = registers[operation.a]
    if name in _UNARY:
        return _UNARY[name](a)
    if name in _BINARY:
        return _BINARY[name](a, registers[operation.b]).float()
    if name in _SCALAR:
        return _SCALAR[name](a, operation.x, operation.y)
    if name == "where":
        return torch.where(a != 0, registers[operation.b], registers[operation.c])
    if name == "mulmod":
        return ((a.long() * registers[operation.b].long() + registers[operation.c].long()) % int(operation.x)).float()
    grouped = a.unflatten(-1, (-1, operation.b))
    return _REDUCE[name](grouped).expand_as(grouped).flatten(-2)
