from __future__ import annotations

import copy

import pytest
import torch

from fastgen.nn import ActNorm, InvertibleConv1x1
from fastgen.nn.linear.invertible_conv1x1 import random_rotation

FORMS = [(lu, act_norm) for lu in (True, False) for act_norm in (True, False)]


def layer_of(channels: int, lu: bool, act_norm: bool) -> InvertibleConv1x1:
    """With parameters that are not those it begins with."""
    layer = InvertibleConv1x1(channels, lu=lu, act_norm=act_norm).double()
    layer(3 + torch.randn(20, channels, 2, dtype=torch.float64))
    for parameter in layer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return layer


class Method(torch.nn.Module):
    def __init__(self, layer, method):
        super().__init__()
        self.layer, self.method = layer, method

    def forward(self, x):
        return getattr(self.layer, self.method)(x)


@pytest.mark.parametrize("lu", [True, False])
def test_it_begins_as_a_rotation(lu):
    torch.manual_seed(0)
    layer = InvertibleConv1x1(9, lu=lu)
    x = torch.randn(6, 9)
    y, log_det = layer(x)
    torch.testing.assert_close(y.square().sum(1), x.square().sum(1))
    torch.testing.assert_close(log_det, torch.zeros(6), rtol=0, atol=1e-5)
    assert not torch.equal(InvertibleConv1x1(9, lu=lu)(x)[0], y)


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_a_random_rotation_has_determinant_1(channels):
    for _ in range(5):
        rotation = random_rotation(channels)
        torch.testing.assert_close(rotation @ rotation.t(), torch.eye(channels), rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.linalg.det(rotation), torch.tensor(1.0))


@pytest.mark.parametrize("lu", [True, False])
def test_act_norm_folded_is_act_norm_before(lu):
    layer = layer_of(4, lu, True)
    apart = copy.deepcopy(layer)
    apart.act_norm = None
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    normal, first = layer.act_norm(x)
    wanted, second = apart(normal)
    y, log_det = layer(x)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(log_det, first + second)


def test_the_first_batch_sets_act_norm_and_the_state_dict_says_so():
    layer, other = InvertibleConv1x1(3, act_norm=True), InvertibleConv1x1(3, act_norm=True)
    x = 4 + 2 * torch.randn(30, 3, 5)
    y, _ = layer(x)
    torch.testing.assert_close(y.mean((0, 2)), torch.zeros(3), rtol=0, atol=1e-4)
    other.load_state_dict(layer.state_dict())
    for mine, theirs in zip(other(x + 1), layer(x + 1), strict=True):
        assert torch.equal(mine, theirs)
    names = {"permutation", "sign", "lower", "upper", "log_s"}
    assert set(layer.state_dict()) == names | {f"act_norm.{n}" for n in ActNorm(3).state_dict()}


@pytest.mark.parametrize(("lu", "act_norm"), FORMS)
@pytest.mark.parametrize("method", ["forward", "inverse"])
def test_every_parameter_gets_its_gradient(method, lu, act_norm):
    layer, x = layer_of(3, lu, act_norm), torch.randn(2, 3, 4, dtype=torch.float64)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def run(*values):
        given = {f"layer.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(Method(layer, method), given, (x,))

    assert torch.autograd.gradcheck(run, parameters)


@pytest.mark.parametrize(("lu", "act_norm"), FORMS)
def test_it_compiles_and_half_precision_is_computed_in_float32(lu, act_norm):
    layer = layer_of(3, lu, act_norm).float()
    x = torch.randn(2, 3, 4)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for mine, eager in zip(compiled(x), layer(x), strict=True):
        torch.testing.assert_close(mine, eager)
    with torch.autocast("cpu", torch.bfloat16):
        for mine, eager in zip(layer(x), layer(x), strict=True):
            assert mine.dtype == torch.float32
            assert torch.equal(mine, eager)
    y, log_det = layer(x.bfloat16())
    assert torch.equal(y, layer(x.bfloat16().float())[0].bfloat16())
    assert log_det.dtype == torch.float32


@pytest.mark.parametrize("method", ["forward", "inverse"])
def test_singular_and_non_finite_parameters_are_named(method):
    layer, x = InvertibleConv1x1(3, act_norm=True).eval(), torch.zeros(2, 3)
    for name in ("lower", "upper", "log_s"):
        wrong = copy.deepcopy(layer)
        getattr(wrong, name).data.flatten()[1] = float("inf")
        with pytest.raises(ValueError, match=f"{name} must be finite, got 1 values that are not"):
            getattr(wrong, method)(x)
    wrong = copy.deepcopy(layer)
    wrong.log_s.data[0] = -120
    with pytest.raises(ValueError, match=r"log_s must have an exp .*, got numbers from -120"):
        getattr(wrong, method)(x)
    layer.act_norm.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="bias must be finite, got 1"):
        getattr(layer, method)(x)
    plain = InvertibleConv1x1(3, lu=False)
    plain.weight.data[1] = 0
    with pytest.raises(ValueError, match="weight must have an inverse"):
        getattr(plain, method)(x)
    plain.weight.data[1] = float("nan")
    with pytest.raises(ValueError, match="weight must be finite, got 3 values"):
        getattr(plain, method)(x)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="channels must be at least 1, got 0"):
        InvertibleConv1x1(0)
    for method in ("forward", "inverse"):
        with pytest.raises(ValueError, match=r"x must have shape \[N, 3, ...\], got \(2, 4\)"):
            getattr(InvertibleConv1x1(3), method)(torch.zeros(2, 4))
