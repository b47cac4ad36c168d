"""Initial value problems: steps of a fixed size here, adaptive ones by torchdiffeq; gradients by the adjoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

State = tuple[Tensor, ...]
Slope = Callable[[float | Tensor, State], tuple[State, State]]
"""From t and the state to its derivative, and to what is integrated beside it."""

Dynamics = Callable[[float | Tensor, Tensor], tuple[Tensor, State]]
"""From t and x to dx/dt, and to what is integrated along the path."""

FIXED: dict[str, tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]] = {
    "euler": ((), (1.0,)),
    "midpoint": (((1 / 2,),), (0.0, 1.0)),
    "heun2": (((1.0,),), (1 / 2, 1 / 2)),
    "heun3": (((1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4)),
    "rk4": (((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)),
}
"""Butcher tableaus: the rows of the stages from the second on, and the weights. "rk4" is Kutta's rule of 3/8."""

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun", "fehlberg2")


class SolverLimitExceeded(RuntimeError):
    """An ODE solver did not reach the end within its limit of evaluations, or with steps that still move the time."""


@dataclass
class Evaluations:
    """How often a field was evaluated on the way forward, and in the adjoint's solve backward."""

    forward: int = 0
    backward: int = 0


@dataclass(frozen=True)
class OdeSolver:
    """An explicit Runge-Kutta method by its name in torchdiffeq.

    Attributes:
        name: with steps of a fixed size "euler", "midpoint", "heun2", "heun3" or "rk4"; with steps that keep the
            estimated error within tolerance "dopri5", "dopri8", "bosh3", "adaptive_heun" or "fehlberg2".
        rtol: of an adaptive solver, relative to the state.
        atol: of an adaptive solver, absolute. The root mean square over the batch of each part of the state counts.
        step_size: of a fixed solver, which needs one; the last step is shorter where it does not divide the time.
        max_evaluations: at most so many of the slope in one solve.

    Raises:
        ValueError: an unknown name, a number out of range, a step size missing or of no use.
    """

    name: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    step_size: float | None = None
    max_evaluations: int = 10_000

    def __post_init__(self) -> None:
        if self.name not in FIXED and self.name not in ADAPTIVE:
            allowed = ", ".join(map(repr, (*FIXED, *ADAPTIVE)))
            raise ValueError(f"solver is {self.name!r}; it must be one of {allowed}")
        for name in ("rtol", "atol"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be greater than 0, and finite")
        if self.name in FIXED and (self.step_size is None or not 0 < self.step_size < math.inf):
            raise ValueError(f"step_size is {self.step_size}; for {self.name!r} it must be greater than 0, and finite")
        if self.name in ADAPTIVE and self.step_size is not None:
            raise ValueError(f"step_size is {self.step_size}, but {self.name!r} chooses its steps by rtol and atol")
        if self.max_evaluations < 1:
            raise ValueError(f"max_evaluations is {self.max_evaluations}; it must be at least 1")

    @property
    def is_fixed(self) -> bool:
        """Whether its steps are of a fixed size."""
        return self.name in FIXED

    def solve(self, slope: Slope, state: State, integrals: State, begin: float, end: float) -> tuple[State, State]:
        """The state at ``end``, and ``integrals`` with what was integrated added.

        Raises:
            SolverLimitExceeded: more than ``max_evaluations`` are needed, or the step size of an adaptive solver has
                become too small to move the time.
            ModuleNotFoundError: torchdiffeq, which has the adaptive solvers, is not installed.
        """
        if self.is_fixed:
            return self._by_fixed_steps(slope, state, integrals, begin, end)
        return self._by_torchdiffeq(slope, state, integrals, begin, end)

    def _by_fixed_steps(
        self, slope: Slope, state: State, integrals: State, begin: float, end: float
    ) -> tuple[State, State]:
        rows, weights = FIXED[self.name]
        count = math.ceil(abs(end - begin) / self.step_size - 1e-6)
        if count * len(weights) > self.max_evaluations:
            raise SolverLimitExceeded(
                f"solver {self.name!r} needs {count * len(weights)} evaluations for steps of {self.step_size:g} from "
                f"t = {begin:g} to {end:g}; max_evaluations is {self.max_evaluations}"
            )
        times = [begin + math.copysign(i * self.step_size, end - begin) for i in range(count)] + [end]
        for now, after in pairwise(times):
            step, slopes = after - now, []
            for i, weight in enumerate(weights):
                row = rows[i - 1] if i else ()
                at = tuple(_moved(s, [k[j] for k in slopes], row, step) for j, s in enumerate(state))
                change, integrands = slope(now + sum(row) * step, at)
                slopes.append(change)
                if weight:
                    integrals = tuple(
                        torch.add(a, b, alpha=weight * step) for a, b in zip(integrals, integrands, strict=True)
                    )
            state = tuple(_moved(s, [k[j] for k in slopes], weights, step) for j, s in enumerate(state))
        return state, integrals

    def _by_torchdiffeq(
        self, slope: Slope, state: State, integrals: State, begin: float, end: float
    ) -> tuple[State, State]:
        try:
            from torchdiffeq import odeint
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"solver {self.name!r} is torchdiffeq's, which is not installed: pip install torchdiffeq, or take one "
                f"of {', '.join(map(repr, FIXED))}"
            ) from error
        counted = _Counted(self, slope, len(state), begin, end)
        times = torch.tensor([begin, end], dtype=torch.float64, device=state[0].device)
        try:
            found = odeint(
                counted,
                (*state, *integrals),
                times,
                rtol=self.rtol,
                atol=self.atol,
                method=self.name,
                options={"step_t": times[1:]},  # the last step ends there, nothing is interpolated
            )
        except AssertionError as error:  # torchdiffeq's way to say that the step size is too small, or the state NaN
            raise SolverLimitExceeded(counted.failure(f"stopped ({str(error).partition(':')[0]})")) from error
        last = tuple(each[1] for each in found)
        return last[: len(state)], last[len(state) :]


class _Counted:
    """The slope as torchdiffeq calls it, no more often than allowed."""

    def __init__(self, solver: OdeSolver, slope: Slope, states: int, begin: float, end: float) -> None:
        self.solver, self.slope, self.states, self.begin, self.end = solver, slope, states, begin, end
        self.count, self.reached = 0, torch.tensor(begin)

    def __call__(self, t: Tensor, whole: State) -> State:
        if self.count == self.solver.max_evaluations:
            raise SolverLimitExceeded(self.failure(f"has made {self.count} evaluations, which max_evaluations allows,"))
        self.count, self.reached = self.count + 1, t.detach()
        change, integrands = self.slope(t, whole[: self.states])
        return *change, *integrands

    def failure(self, what: str) -> str:
        solver = self.solver
        return (
            f"solver {solver.name!r} {what} at t = {self.reached.item():g} on the way from {self.begin:g} to "
            f"{self.end:g} with rtol={solver.rtol:g} and atol={solver.atol:g}; the field is too stiff for that: loosen "
            "the tolerance, allow more evaluations, or take a fixed solver"
        )


def _moved(state: Tensor, slopes: Sequence[Tensor], factors: Sequence[float], step: float) -> Tensor:
    for slope, factor in zip(slopes, factors, strict=True):
        if factor:
            state = torch.add(state, slope, alpha=factor * step)
    return state


@dataclass(frozen=True)
class Path:
    """The solve of ``dynamics`` from x at ``begin`` to ``end``.

    ``forward`` gives x there, and as many integrals along the path as ``count`` says, from 0, each [N].
    """

    solver: OdeSolver
    dynamics: Dynamics
    begin: float
    end: float
    count: int
    evaluations: Evaluations

    def forward(self, x: Tensor) -> State:
        def slope(t: float | Tensor, state: State) -> tuple[State, State]:
            self.evaluations.forward += 1
            change, integrands = self.dynamics(t, state[0])
            return (change,), integrands

        zeros = tuple(x.new_zeros(len(x)) for _ in range(self.count))
        (x,), integrals = self.solver.solve(slope, (x,), zeros, self.begin, self.end)
        return x, *integrals

    def forward_by_adjoint(self, x: Tensor, parameters: Sequence[Tensor]) -> State:
        """``forward`` that keeps its end alone: its gradient is a solve back, by the adjoint's differential equation.

        x, its adjoint and the gradients of the parameters are integrated together from ``end`` to ``begin``; the
        adjoints of the integrals are constant. It can be differentiated once.

        Reference: Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations", NeurIPS 2018.
        """
        return _Adjoint.apply(self, x, *parameters)

    def backward(self, x: Tensor, parameters: Sequence[Tensor], cotangents: State) -> tuple[Tensor, list[Tensor]]:
        """The gradients of x at ``begin`` and of the parameters, from x at ``end`` and the cotangents there."""
        adjoint, *constant = cotangents

        def slope(t: float | Tensor, state: State) -> tuple[State, State]:
            self.evaluations.backward += 1
            with torch.enable_grad():
                at = state[0].detach().requires_grad_()
                change, integrands = self.dynamics(t, at)
                pairs = zip((change, *integrands), (state[1], *constant), strict=True)
                recorded = [(output, cotangent) for output, cotangent in pairs if output.requires_grad]
            inputs = (at, *parameters)
            if recorded:
                outputs, along = zip(*recorded, strict=True)
                found = torch.autograd.grad(outputs, inputs, along, allow_unused=True, materialize_grads=True)
            else:
                found = [torch.zeros_like(given) for given in inputs]
            flat = tuple([torch.cat([gradient.flatten() for gradient in found[1:]])] if parameters else [])
            return (change.detach(), found[0].neg()), flat

        zeros = tuple([x.new_zeros(sum(p.numel() for p in parameters))] if parameters else [])
        (_, adjoint), integrals = self.solver.solve(slope, (x, adjoint), zeros, self.end, self.begin)
        if not parameters:
            return adjoint, []
        parts = integrals[0].neg().split([p.numel() for p in parameters])
        return adjoint, [part.view_as(p).to(p.dtype) for part, p in zip(parts, parameters, strict=True)]


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx, path: Path, x: Tensor, *parameters: Tensor) -> State:
        ctx.path = path
        found = path.forward(x)
        ctx.save_for_backward(found[0], *parameters)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        gradient, gradients = ctx.path.backward(x, parameters, cotangents)
        return None, gradient, *gradients
