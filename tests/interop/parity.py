"""What the tests of an accelerated library share: the same layers with and without kernels, against float64."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

import fastgen

EPSILON = torch.finfo(torch.float32).eps
Call = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
"""One direction of a layer, as (values, log-determinant)."""


def attributes(package: str) -> dict[tuple[str, str], object]:
    """Every attribute of every loaded module of a package and of its classes."""
    found = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != package:
            continue
        for attribute, value in vars(module).items():
            found[name, attribute] = value
            if isinstance(value, type) and value.__module__ == name:
                found |= {(f"{name}.{attribute}", key): member for key, member in vars(value).items()}
    return found


def differing(before: dict, after: dict) -> list:
    return [key for key in before.keys() | after.keys() if before.get(key) is not after.get(key)]


def count_calls(
    monkeypatch: pytest.MonkeyPatch, module: str, ops: Sequence[str], found: list[str] | None = None
) -> list[str]:
    """A list, ``found`` or a new one, that the name of an op is added to whenever the module calls it."""
    interop, found = importlib.import_module(module), [] if found is None else found

    def counted(name: str, op: Callable) -> Callable:
        def call(*arguments, **options):
            found.append(name)
            return op(*arguments, **options)

        return call

    for name in ops:
        monkeypatch.setattr(interop, name, counted(name, getattr(interop, name)))
    return found


def shaken(layer: nn.Module, by: float = 0.3) -> nn.Module:
    """The layer with all its parameters moved, so that none is at the point where it starts."""
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter += by * torch.randn_like(parameter)
    return layer


def check_parity(peer: str, cases: list[tuple[nn.Module, Tensor]], call: Call, *, recorded: bool = True) -> None:
    """Accelerated layers are as exact as float32 allows: values, log-determinants and gradients of several cases.

    At most twice the error of the library itself, plus what rounding the input and the parameters once more makes; each
    result relative to its largest number, and the errors of all cases together: the largest of a few is a matter of
    luck.
    """
    errors = []
    for layer, x in cases:
        wide = copy.deepcopy(layer).double()
        moved = _rounded(wide)
        exact = results(wide, x.double(), call, recorded)
        rounded = results(moved, _moved(x.double()), call, recorded)
        theirs = results(layer, x, call, recorded)
        with fastgen.accelerated(peer):
            ours = results(layer, x, call, recorded)
        for mine, single, near, true in zip(ours, theirs, rounded, exact, strict=True):
            assert mine.shape == single.shape
            assert mine.dtype == single.dtype
            if true.numel():
                size = true.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
                errors.append([float((t.double() - true).abs().max() / size) for t in (mine, single, near)])
    mine, single, near = (torch.tensor(column) for column in zip(*errors, strict=True))
    assert mine.max() <= 2 * single.max() + 2 * near.max() + 4 * EPSILON


def results(layer: nn.Module, x: Tensor, call: Call, recorded: bool = True) -> list[Tensor]:
    """Values, log-determinants, and, recorded, the gradients of a function of them: of the input and the parameters."""
    if not recorded:
        with torch.no_grad():
            return list(call(layer, x))
    x = x.detach().clone().requires_grad_()
    y, log_det = call(layer, x)
    weights = torch.linspace(-1, 1, max(1, y.numel()), dtype=y.dtype)[: y.numel()].view_as(y)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    objective = (y * weights).sum() + log_det.square().sum()
    gradients = torch.autograd.grad(objective, [x, *parameters], allow_unused=True)
    return [t.detach() for t in (y, log_det, *gradients) if t is not None]


def _rounded(layer: nn.Module) -> nn.Module:
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter.copy_(_moved(parameter))
    return layer


def _moved(tensor: Tensor) -> Tensor:
    """Every number up or down by one rounding to float32."""
    return tensor * (1 + EPSILON * (torch.randint(0, 2, tensor.shape) * 2 - 1))
