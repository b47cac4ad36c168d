from __future__ import annotations

import pytest
import torch

from fastgen.nn import FlowSequential, InvertibleResidual, LipschitzMLP
from fastgen.nn.residual.lip_swish import LipSwish

BETAS = [-20.0, -1.0, 0.5, 3.0, 50.0]


def layer_of(beta: float) -> LipSwish:
    layer = LipSwish().double()
    with torch.no_grad():
        layer.beta.fill_(beta)
    return layer


@pytest.mark.parametrize("beta", BETAS)
def test_it_is_the_formula_of_the_paper(beta):
    x = torch.linspace(-30, 30, 301, dtype=torch.float64)
    sharpness = torch.tensor(beta, dtype=torch.float64).exp().log1p()
    torch.testing.assert_close(layer_of(beta)(x), x / (1 + torch.exp(-sharpness * x)) / 1.1)


@pytest.mark.parametrize("beta", BETAS)
def test_its_slope_is_at_most_one_and_nearly_reaches_it(beta):
    layer = layer_of(beta)
    x = (torch.linspace(-40, 40, 80_001, dtype=torch.float64) / layer.sharpness.detach()).requires_grad_()
    (slope,) = torch.autograd.grad(layer(x).sum(), x)
    assert 0.9998 < slope.abs().max() <= 1


def test_its_gradients_are_those_of_finite_differences():
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    beta = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    layer = LipSwish()
    assert torch.autograd.gradcheck(lambda x, beta: torch.func.functional_call(layer, {"beta": beta}, (x,)), (x, beta))


@pytest.mark.parametrize("assign", [True, False])
def test_a_scalar_of_an_earlier_version_loads(assign):
    torch.manual_seed(0)
    first, second = (FlowSequential(InvertibleResidual(LipschitzMLP(2, (8, 8)))) for _ in range(2))
    for value in (layer.beta for layer in first.modules() if isinstance(layer, LipSwish)):
        value.data.add_(torch.randn(1))
    state = first.state_dict()
    saved = {key: value.squeeze(0) if key.endswith("beta") else value for key, value in state.items()}
    second.load_state_dict(saved, assign=assign)
    assert all(torch.equal(value, state[key]) for key, value in second.state_dict().items())
    assert all(value.dim() == 0 for key, value in saved.items() if key.endswith("beta"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_half_precision(dtype):
    assert LipSwish()(torch.randn(3, dtype=dtype)).dtype == dtype
