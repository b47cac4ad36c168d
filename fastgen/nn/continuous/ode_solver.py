"""Initial value problems: steps of a fixed size here, adaptive ones by torchdiffeq."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen.ops.arguments import check_integers

Slope = Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]]
"""From x to dx/dt, and to what is integrated along the path."""

Dynamics = Callable[[Sequence[float | Tensor]], Sequence[Slope]]
"""From times to the slope at each."""


class Tableau(NamedTuple):
    """A Butcher tableau: the rows of the stages from the second on, and the weights."""

    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


FIXED = {
    "euler": Tableau((), (1.0,)),
    "midpoint": Tableau(((1 / 2,),), (0.0, 1.0)),
    "heun2": Tableau(((1.0,),), (1 / 2, 1 / 2)),
    "heun3": Tableau(((1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4)),
    "rk4": Tableau(((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)),  # the 3/8 rule
}
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun", "fehlberg2")


class SolverLimitExceeded(RuntimeError):
    """An ODE solver did not reach the end within its limit of evaluations, or with steps that still move the time."""


@dataclass(frozen=True)
class OdeSolver:
    """An explicit Runge-Kutta method by its name in torchdiffeq.

    Attributes:
        name: with steps of a fixed size "euler", "midpoint", "heun2", "heun3" or "rk4"; with steps that keep the
            estimated error within tolerance "dopri5", "dopri8", "bosh3", "adaptive_heun" or "fehlberg2".
        rtol: of an adaptive solver, relative to the state.
        atol: of an adaptive solver, absolute. The root mean square over the batch of each part of the state counts.
        step_size: of a fixed solver, which needs one; the last step is shorter where it does not divide the time.
        max_evaluations: at most so many of the dynamics in one solve.

    Raises:
        ValueError: an unknown name, a number out of range, a step size missing or of no use.

    Example:
        >>> solver = OdeSolver("rk4", step_size=0.1)
        >>> decay = lambda times: [lambda x: (-x, ()) for _ in times]
        >>> (x,) = solver.solve(decay, torch.ones(1, 2), 0, 0.0, 1.0)
        >>> bool((x - torch.tensor(-1.0).exp()).abs().max() < 1e-5)
        True
    """

    name: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    step_size: float | None = None
    max_evaluations: int = 10_000

    def __post_init__(self) -> None:
        if self.name not in FIXED and self.name not in ADAPTIVE:
            allowed = ", ".join(map(repr, (*FIXED, *ADAPTIVE)))
            raise ValueError(f"solver must be one of {allowed}, got {self.name!r}")
        for name in ("rtol", "atol"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be greater than 0, and finite, got {getattr(self, name)}")
        if self.name in FIXED and (self.step_size is None or not 0 < self.step_size < math.inf):
            raise ValueError(
                f"step_size must be greater than 0, and finite, for solver {self.name!r}, got {self.step_size}"
            )
        if self.name in ADAPTIVE and self.step_size is not None:
            raise ValueError(
                f"step_size must be None for solver {self.name!r}, which chooses its steps by rtol and atol, got "
                f"{self.step_size}"
            )
        check_integers(max_evaluations=self.max_evaluations)

    @property
    def is_fixed(self) -> bool:
        """Whether the solver's steps are of a fixed size."""
        return self.name in FIXED

    def solve(
        self, dynamics: Dynamics, x: Tensor, count: int, begin: float, end: float, kept: list[Step] | None = None
    ) -> tuple[Tensor, ...]:
        """x at ``end``, and the ``count`` integrals [N] along the path from ``begin``, where it is given.

        Args:
            kept: gets the steps that were taken, in their order.

        Raises:
            SolverLimitExceeded: more than ``max_evaluations`` are needed, or the step size of an adaptive solver has
                become too small to move the time.
            ModuleNotFoundError: torchdiffeq, which has the adaptive solvers, is not installed.
        """
        by = self._by_fixed_steps if self.is_fixed else self._by_torchdiffeq
        return by(dynamics, x, count, begin, end, kept)

    def step(self, dynamics: Dynamics, x: Tensor, begin: float, size: float) -> tuple[Tensor, ...]:
        """x after one step, and what it adds to the integrals."""
        tableau = FIXED[self.name] if self.is_fixed else _tableau_of_torchdiffeq(self.name)
        slopes: list[Tensor] = []
        integrals: tuple[Tensor, ...] | None = None
        rows = ((), *tableau.rows)
        stages = dynamics([begin + sum(row) * size for row in rows])
        for at, row, weight in zip(stages, rows, tableau.weights, strict=True):
            slope, integrands = at(_moved(x, slopes, row, size))
            slopes.append(slope)
            if not weight:
                continue
            if integrals is None:
                integrals = tuple(each * (weight * size) for each in integrands)
            else:
                pairs = zip(integrals, integrands, strict=True)
                integrals = tuple(torch.add(total, each, alpha=weight * size) for total, each in pairs)
        return _moved(x, slopes, tableau.weights, size), *integrals

    def _by_fixed_steps(
        self, dynamics: Dynamics, x: Tensor, count: int, begin: float, end: float, kept: list[Step] | None
    ) -> tuple[Tensor, ...]:
        steps = math.ceil(abs(end - begin) / self.step_size - 1e-6)
        needed = steps * len(FIXED[self.name].weights)
        if needed > self.max_evaluations:
            raise SolverLimitExceeded(
                f"max_evaluations must be at least {needed} for solver {self.name!r} with steps of {self.step_size:g} "
                f"from t = {begin:g} to {end:g}, got {self.max_evaluations}"
            )
        times = [begin + math.copysign(i * self.step_size, end - begin) for i in range(steps)] + [end]
        integrals = [x.new_zeros(x.shape[0]) for _ in range(count)]
        for now, after in pairwise(times):
            if kept is not None:
                kept.append(Step(x, now, after - now))
            x, *more = self.step(dynamics, x, now, after - now)
            integrals = [total + each for total, each in zip(integrals, more, strict=True)]
        return x, *integrals

    def _by_torchdiffeq(
        self, dynamics: Dynamics, x: Tensor, count: int, begin: float, end: float, kept: list[Step] | None
    ) -> tuple[Tensor, ...]:
        counted = _Counted(self, dynamics, begin, end, kept)
        return self._with_torchdiffeq("odeint", counted, counted, x, count, begin, end)

    def solve_with_adjoint(
        self,
        forward: Dynamics,
        backward: Dynamics,
        x: Tensor,
        count: int,
        begin: float,
        end: float,
        parameters: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """``solve`` by torchdiffeq, which finds the gradient by a solve back; errors are those of ``solve``.

        Args:
            forward, backward: the dynamics on either way.
            parameters: what they depend on, of which a gradient is wanted.
        """
        there = _Counted(self, forward, begin, end, None)
        back = _Counted(self, backward, end, begin, None)

        def counted(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (back if torch.is_grad_enabled() else there)(t, state)

        more = {"adjoint_params": tuple(parameters), "adjoint_options": self._options(end, begin, x)}
        return self._with_torchdiffeq("odeint_adjoint", counted, there, x, count, begin, end, **more)

    def _with_torchdiffeq(
        self,
        function: str,
        dynamics: Callable,
        counted: _Counted,
        x: Tensor,
        count: int,
        begin: float,
        end: float,
        **more,
    ) -> tuple[Tensor, ...]:
        try:
            solve = getattr(importlib.import_module("torchdiffeq"), function)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{function} of solver {self.name!r} is torchdiffeq's, which is not installed: pip install "
                f"torchdiffeq, or take one of {', '.join(map(repr, FIXED))}, with its gradient by steps"
            ) from error
        try:
            found = solve(
                dynamics,
                (x, *(x.new_zeros(x.shape[0]) for _ in range(count))),
                torch.tensor([begin, end], dtype=torch.float64, device=x.device),
                rtol=self.rtol,
                atol=self.atol,
                method=self.name,
                options=self._options(begin, end, x),
                **more,
            )
        except AssertionError as error:  # torchdiffeq's way to say that the step size is too small, or the state NaN
            raise SolverLimitExceeded(counted.failure(f"stopped ({str(error).partition(':')[0]})")) from error
        return tuple(each[1] for each in found)

    def _options(self, begin: float, end: float, x: Tensor) -> dict:
        """Solves with torchdiffeq; an adaptive solver's last step ends at the end."""
        if self.is_fixed:
            return {"step_size": self.step_size}
        return {
            "first_step": abs(end - begin),
            "step_t": torch.tensor([end], dtype=torch.float64, device=x.device),
        }


class Step(NamedTuple):
    """A step that a solver took, from x at the time ``begin``."""

    x: Tensor
    begin: float
    size: float


@functools.cache
def _tableau_of_torchdiffeq(name: str) -> Tableau:
    from torchdiffeq._impl.odeint import SOLVERS

    tableau = SOLVERS[name].tableau
    rows, weights = [row.tolist() for row in tableau.beta], tableau.c_sol.tolist()
    while not weights[-1]:  # a stage for the estimate of the error
        rows.pop()
        weights.pop()
    return Tableau(tuple(map(tuple, rows)), tuple(weights))


class _Counted:
    """The dynamics as torchdiffeq calls them, no more often than allowed."""

    def __init__(
        self, solver: OdeSolver, dynamics: Dynamics, begin: float, end: float, kept: list[Step] | None
    ) -> None:
        self.solver, self.dynamics, self.begin, self.end, self.kept = solver, dynamics, begin, end, kept
        self.count, self.reached = 0, torch.tensor(begin)

    def __call__(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.count == self.solver.max_evaluations:
            raise SolverLimitExceeded(self.failure(f"has made {self.count} evaluations, which max_evaluations allows,"))
        self.count, self.reached = self.count + 1, t.detach()
        slope, integrands = self.dynamics([t])[0](state[0])
        return slope, *integrands

    def callback_accept_step(self, t: Tensor, state: tuple[Tensor, ...], size: Tensor) -> None:
        if self.kept is not None:
            self.kept.append(Step(state[0], t.item(), math.copysign(size.item(), self.end - self.begin)))

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
