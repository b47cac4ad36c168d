"""A solve whose evaluations are counted, and its gradient: by its steps once more, or by the adjoint."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastgen.nn.continuous.ode_solver import Dynamics, OdeSolver, Slope, Step


@dataclass
class Evaluations:
    """Counts of a field's evaluations on the way forward, and for the gradient."""

    forward: int = 0
    backward: int = 0


@dataclass(frozen=True)
class Path:
    """The solve of ``dynamics`` from ``begin`` to ``end``: of x there, and of ``count`` integrals along the path."""

    solver: OdeSolver
    dynamics: Dynamics
    begin: float
    end: float
    count: int
    evaluations: Evaluations

    def forward(self, x: Tensor, kept: list[Step] | None = None) -> tuple[Tensor, ...]:
        return self.solver.solve(self._dynamics("forward"), x, self.count, self.begin, self.end, kept)

    def forward_by_adjoint(self, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """``forward`` that keeps its end alone: for the gradient the adjoint's equation is solved from there back.

        Reference: Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations", NeurIPS 2018.
        """
        ways = self._dynamics("forward"), self._dynamics("backward")
        return self.solver.solve_with_adjoint(*ways, x, self.count, self.begin, self.end, parameters)

    def forward_by_steps(self, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """``forward`` that keeps x before each step, and nothing of a step itself.

        For the gradient the steps are taken once more, from the last to the first, each with its graph: it is that of
        the numbers computed, with an adaptive solver's step sizes for constants, and can be differentiated once.

        Reference: Zhuang et al., "Adaptive checkpoint adjoint method for gradient estimation in neural ODE", ICML 2020.
        """
        return _BySteps.apply(self, x, *parameters)

    def backward(
        self, kept: Sequence[Step], parameters: Sequence[Tensor], cotangents: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The gradients of x at ``begin`` and of the parameters."""
        dynamics = self._dynamics("backward")
        adjoint, *constant = cotangents
        totals: list[Tensor] = []
        for step in reversed(kept):
            with torch.enable_grad():
                x = step.x.detach().requires_grad_()
                outputs = self.solver.step(dynamics, x, step.begin, step.size)
            pairs = zip(outputs, (adjoint, *constant), strict=True)
            recorded, along = zip(*((out, cotangent) for out, cotangent in pairs if out.requires_grad), strict=True)
            adjoint, *found = torch.autograd.grad(
                recorded, (x, *parameters), along, allow_unused=True, materialize_grads=True
            )
            totals = [total + each for total, each in zip(totals, found, strict=True)] if totals else found
        return adjoint, totals

    def _dynamics(self, direction: str) -> Dynamics:
        """Returns fields whose evaluations are counted."""

        def evaluate(at: Slope, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            setattr(self.evaluations, direction, getattr(self.evaluations, direction) + 1)
            return at(x)

        return lambda times: [functools.partial(evaluate, at) for at in self.dynamics(times)]


class _BySteps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, path: Path, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.path, ctx.kept = path, []
        ctx.save_for_backward(*parameters)
        return path.forward(x, ctx.kept)

    @staticmethod
    @once_differentiable
    def backward(ctx, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        gradient, gradients = ctx.path.backward(ctx.kept, ctx.saved_tensors, cotangents)
        return None, gradient, *gradients
