from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastgen.nn import ConvNetField, HutchinsonTrace
from fastgen.ops import ConvField

TIMES = ["none", "concat", "concat-squash"]


class ByHand(nn.Module):
    """As FFJORD's code has it, layer by layer."""

    def __init__(self, field: ConvNetField) -> None:
        super().__init__()
        self.field = field

    def forward(self, x: Tensor, t: float | None = None, context: Tensor | None = None) -> Tensor:
        field, activation = self.field, {"tanh": torch.tanh, "softplus": nn.Softplus(), "swish": nn.SiLU()}
        for i, layer in enumerate(field.layers):
            given = torch.cat([torch.full_like(x[:, :1], t), x], 1) if field.time == "concat" else x
            x = layer(given)
            if i == 0 and context is not None:
                x = x + field.context(context)[:, :, None, None]
            if field.time == "concat-squash":
                now = torch.full((1, 1), t, dtype=x.dtype)
                x = x * torch.sigmoid(field.gates[i](now)).view(1, -1, 1, 1) + field.shifts[i](now).view(1, -1, 1, 1)
            if i + 1 < len(field.layers):
                x = activation[field.activation](x)
        return x


def case(time: str, activation: str, context_features: int | None):
    field = ConvNetField((2, 4, 3, 2), 3, activation, time, context_features).double()
    x = torch.randn(3, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    context = torch.randn(3, 2, dtype=torch.float64, requires_grad=True) if context_features else None
    inputs = [x, *field.parameters()] + ([context] if context_features else [])
    return field, (x, None if time == "none" else 0.3, context), inputs


@pytest.mark.parametrize("context_features", [None, 2])
@pytest.mark.parametrize("activation", ["tanh", "softplus", "swish"])
@pytest.mark.parametrize("time", TIMES)
def test_values_and_gradients_are_those_of_the_layers(time, activation, context_features):
    field, given, inputs = case(time, activation, context_features)
    found, wanted = field(*given), ByHand(field)(*given)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), inputs) for y in (found, wanted)))


@pytest.mark.parametrize("context_features", [None, 2])
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("kind", ["rademacher", "hutch++", "exact"])
def test_its_trace_is_that_of_the_layers_as_a_callable(kind, time, context_features):
    field, given, inputs = case(time, "softplus", context_features)
    found = [HutchinsonTrace(f, probes=3, kind=kind)(*given, seed=2, offset=9) for f in (field, ByHand(field))]
    torch.testing.assert_close(*found)
    sums = [y.square().sum() + trace.square().sum() for y, trace in found]
    torch.testing.assert_close(*(torch.autograd.grad(s, inputs) for s in sums))


@pytest.mark.parametrize("time", ["concat", "concat-squash"])
def test_the_gradients_of_the_time_and_the_context(time):
    field, (x, t, context), _ = case(time, "tanh", 2)
    x, t = x.detach(), torch.tensor(t, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t, context: field(x, t, context), [t, context])
    layer = HutchinsonTrace(field)
    assert torch.autograd.gradcheck(lambda t, context: layer(x, t, context), [t, context])


def test_it_gives_a_conv_field_at_a_time():
    field, x = ConvNetField((2, 4, 2), 5, time="concat"), torch.randn(3, 2, 4, 4)
    assert isinstance(field.at(0.3), ConvField)
    assert torch.equal(field.at(0.3)(x), field(x, 0.3))


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda: ConvNetField((3, 3)), "sizes must be those of x, hidden layers and x again, each at least 1"),
        (lambda: ConvNetField((3, 5, 3), 2), "kernel must be odd and at least 1, got 2"),
        (
            lambda: ConvNetField((3, 5, 3), time="fourier"),
            "time must be one of 'none', 'concat', 'concat-squash', got 'fourier'",
        ),
        (
            lambda: ConvNetField((3, 5, 3), time="concat")(torch.zeros(2, 3, 4, 4)),
            "t must be given to a field with time='concat', got None",
        ),
        (
            lambda: ConvNetField((3, 5, 3))(torch.zeros(2, 2, 4, 4)),
            r"x must have shape \[N, 3, H, W\], got \(2, 2, 4, 4\)",
        ),
        (
            lambda: ConvNetField((3, 5, 3), context_features=2)(torch.zeros(2, 3, 4, 4)),
            "context must be given to a field with context_features=2, got None",
        ),
        (
            lambda: ConvNetField((3, 5, 3), context_features=2)(torch.zeros(2, 3, 4, 4), None, torch.zeros(4, 2)),
            r"context must have a row for each of the 2 samples of x, got shape \(4, 2\)",
        ),
    ],
)
def test_wrong_arguments_are_named(use, words):
    with pytest.raises(ValueError, match=words):
        use()
