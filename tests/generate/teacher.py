"""The module's own answer in float64, and how far float32 may be from it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

import fastgen
from fastgen.generate.contexts import context_leaves
from tests.generate.compiled import Case, case, sampler

SAMPLES = 3
EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Taught:
    """Parameters ``[N, P, G, n]`` of random levels, and the errors that float32 is allowed.

    A sum in another order may err as the module's own float32 forward does; twice that, plus one rounding of the
    largest value, is the bound.
    """

    levels: Tensor
    context: object
    parameters: Tensor
    bound: float


def double(module: nn.Module) -> nn.Module:
    """A float64 copy, also of a module that casts to float32 on the way."""
    module = copy.deepcopy(module).double()

    def cast(_, arguments: tuple) -> tuple:
        return tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)

    for layer in module.modules():
        layer.register_forward_pre_hook(cast)
    return module


def in_double(compiled: fastgen.Sampler) -> fastgen.Sampler:
    """The sampler with a float64 module, for ``request.forward`` only."""
    other = copy.copy(compiled)
    other.request = replace(compiled.request, module=double(compiled.module))
    return other


def forward(compiled: fastgen.Sampler, levels: Tensor, context, dtype: torch.dtype) -> Tensor:
    inputs = compiled.head.to_input(levels)
    leaves = context_leaves(compiled.request.layout, context, len(levels))
    floats = [t.to(dtype) if t.is_floating_point() else t for t in (inputs, *leaves)]
    with torch.no_grad():
        return compiled.request.forward(floats[0], floats[1:])


def exact_log_prob(compiled: fastgen.Sampler, levels: Tensor, context) -> tuple[Tensor, Tensor]:
    """The module's float64 log-probability of levels ``[N]``, and the bound ``[N]`` on its error in float32.

    Every parameter of the head may err as float32 allows, independently of the others; the bound is what the head makes
    of it: the error of one, times the norm of the gradient with respect to all.
    """
    output = forward(in_double(compiled), levels, context, torch.float64).requires_grad_()
    exact = compiled.head.log_prob(output, levels)
    (gradient,) = torch.autograd.grad(exact.sum(), output)
    error = _error(output.detach(), forward(compiled, levels, context, torch.float32))
    return exact.detach(), error * gradient.flatten(1).norm(dim=1) + EPSILON * exact.detach().abs()


def _error(exact: Tensor, single: Tensor) -> float:
    return float(2 * (single - exact).abs().max() + EPSILON * exact.abs().max())


def teach(made: Case, compiled: fastgen.Sampler) -> Taught:
    levels, context = made.levels(SAMPLES), made.contexts(SAMPLES)
    exact = forward(in_double(compiled), levels, context, torch.float64)
    single = forward(compiled, levels, context, torch.float32)
    parameters = compiled.head.arrange(exact, compiled.event_shape)
    error = _error(parameters, compiled.head.arrange(single, compiled.event_shape))
    return Taught(levels, context, parameters, error)


@cache
def taught(name: str) -> Taught:
    return teach(case(name), sampler(name))
