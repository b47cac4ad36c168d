"""Solvers, as a continuous flow uses them."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from fastgen.nn import ContinuousFlow, MLPField, SolverLimitExceeded
from fastgen.nn.continuous.ode_solver import ADAPTIVE, FIXED

TIGHT = {"solver": "dopri8", "rtol": 1e-10, "atol": 1e-10}


@pytest.fixture
def field() -> MLPField:
    torch.manual_seed(0)
    return MLPField((3, 6, 5, 3), time="concat-squash").double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_solver_is_of_its_order(name, field, x):
    exact = ContinuousFlow(field, trace="exact", **TIGHT)(x)

    def error(steps: int) -> float:
        found = ContinuousFlow(field, trace="exact", solver=name, step_size=1 / steps)(x)
        return max((a - b).abs().max().item() for a, b in zip(found, exact, strict=True))

    order = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}[name]
    assert math.log2(error(8) / error(16)) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_adaptive_solver_keeps_its_tolerance(name, field, x):
    exact = ContinuousFlow(field, trace="exact", **TIGHT)(x)
    found = ContinuousFlow(field, trace="exact", solver=name, rtol=1e-6, atol=1e-6)(x)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)


class ClosedForm(nn.Module):
    """A field and its trace as torchdiffeq takes them."""

    def __init__(self, field: MLPField) -> None:
        super().__init__()
        self.field = field

    def forward(self, t, state):
        return self.field.at(t).trace(state[0])


def test_values_are_those_of_torchdiffeq_with_the_same_steps_and_gradients_those_of_its_adjoint(field, x):
    times, start = torch.tensor([0.0, 1.0], dtype=torch.float64), (x, x.new_zeros(4))
    for name in FIXED:
        wanted = odeint(ClosedForm(field), start, times, method=name, options={"step_size": 0.3})
        layer = ContinuousFlow(field, trace="closed-form", solver=name, step_size=0.3)
        torch.testing.assert_close(layer(x), tuple(each[1] for each in wanted), rtol=1e-12, atol=1e-12)
    start = (x.requires_grad_(), start[1])
    z, log_det = odeint_adjoint(ClosedForm(field), start, times, method="dopri5", rtol=1e-10, atol=1e-10)
    loss = z[1].sum(1).sin().sum() + log_det[1].sin().sum()
    wanted = [z[1], log_det[1], *torch.autograd.grad(loss, [x, *field.parameters()])]
    z, log_det = ContinuousFlow(field, trace="closed-form", **TIGHT)(x)
    loss = z.sum(1).sin().sum() + log_det.sin().sum()
    found = [z, log_det, *torch.autograd.grad(loss, [x, *field.parameters()])]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


class Exponential(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, x, t):
        return x * self.rate


class Blowing(nn.Module):
    """x = 1 / (1 / x_0 - t) is infinite at t = 1 / x_0."""

    def forward(self, x, t):
        return x * x


def test_a_limit_of_evaluations_is_named():
    x = torch.ones(2, 3, dtype=torch.float64)
    layer = ContinuousFlow(Exponential(-1e5), max_evaluations=50)
    words = r"solver 'dopri5' has made 50 evaluations, which max_evaluations allows, at t = .* rtol=1e-05"
    with pytest.raises(SolverLimitExceeded, match=words):
        layer(x)
    assert layer.evaluations.forward == 50
    with pytest.raises(SolverLimitExceeded, match=r"max_evaluations must be at least 400 for .*, got 399"):
        ContinuousFlow(Exponential(1.0), solver="rk4", step_size=0.01, max_evaluations=399)(x)


def test_the_gradient_takes_the_accepted_steps_alone():
    layer = ContinuousFlow(Exponential(-20.0), trace="exact", rtol=1e-3, atol=1e-3)
    z, _ = layer(torch.ones(2, 3, dtype=torch.float64))
    z.sum().backward()
    assert layer.evaluations.backward % 6 == 0
    assert layer.evaluations.backward < layer.evaluations.forward


def test_a_state_that_explodes_is_named():
    x = torch.full((2, 3), 2.0, dtype=torch.float64)
    with pytest.raises(SolverLimitExceeded, match=r"solver 'dopri5' stopped .* at t = 0\.(5|4999)"), torch.no_grad():
        ContinuousFlow(Blowing(), trace="exact", rtol=1e-4, atol=1e-4)(x)


def test_what_torchdiffeq_is_needed_for_is_said(field, x, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ModuleNotFoundError, match="pip install torchdiffeq, or take one of 'euler'"):
        ContinuousFlow(field)(x)
    ContinuousFlow(field, solver="rk4", step_size=0.5)(x)
