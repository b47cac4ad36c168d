from __future__ import annotations

import pytest
import torch

from fastgen.nn import MLPField
from fastgen.ops import DenseField


def by_hand(field: MLPField, x: torch.Tensor, t: float, context: torch.Tensor | None) -> torch.Tensor:
    """As FFJORD's code has it, layer by layer."""
    activation = {"tanh": torch.tanh, "softplus": torch.nn.Softplus(), "swish": lambda a: a * torch.sigmoid(a)}
    now = torch.full((1, 1), t, dtype=x.dtype)
    x = x if context is None else torch.cat([x, context], 1)
    for i, layer in enumerate(field.layers):
        if field.time == "concat":
            x = layer(torch.cat([now.expand(len(x), 1), x], 1))
        elif field.time == "concat-squash":
            x = layer(x) * torch.sigmoid(field.gates[i](now)) + field.shifts[i](now)
        else:
            x = layer(x)
        if i + 1 < len(field.layers):
            x = activation[field.activation](x)
    return x


@pytest.mark.parametrize("context_features", [None, 2])
@pytest.mark.parametrize("activation", ["tanh", "softplus", "swish"])
@pytest.mark.parametrize("time", ["none", "concat", "concat-squash"])
def test_values_and_gradients_are_those_of_the_layers(time, activation, context_features):
    field = MLPField((3, 5, 4, 3), activation, time, context_features).double()
    inputs = [torch.randn(6, 3, dtype=torch.float64, requires_grad=True), *field.parameters()]
    context = torch.randn(6, 2, dtype=torch.float64, requires_grad=True) if context_features else None
    inputs += [context] if context_features else []
    found, wanted = field(inputs[0], 0.3, context), by_hand(field, inputs[0], 0.3, context)
    torch.testing.assert_close(found, wanted)
    for mine, theirs in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in (found, wanted)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_gradients_of_the_time_and_the_context():
    field = MLPField((3, 5, 3), time="concat-squash", context_features=2).double()
    x, t = torch.randn(2, 3, dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    context = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t, context: field(x, t, context), [t, context])


def test_it_gives_a_dense_field_at_a_time():
    field = MLPField((3, 5, 3), time="concat")
    dense, x = field.at(0.3), torch.randn(4, 3)
    assert isinstance(dense, DenseField)
    assert torch.equal(dense(x), field(x, 0.3))


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda: MLPField((3, 3)), "sizes must be those of x, hidden layers and x again, each at least 1"),
        (lambda: MLPField((3, 0, 3)), "sizes must be those of x, hidden layers and x again, each at least 1"),
        (lambda: MLPField((3, 5, 2)), "sizes must be those of x, hidden layers and x again, each at least 1"),
        (
            lambda: MLPField((3, 5, 3), "relu"),
            "activation must be one of 'tanh', 'softplus', 'swish', 'elu', got 'relu'",
        ),
        (
            lambda: MLPField((3, 5, 3), time="fourier"),
            "time must be one of 'none', 'concat', 'concat-squash', got 'fourier'",
        ),
        (lambda: MLPField((3, 5, 3), context_features=0), "context_features must be at least 1, or None, got 0"),
        (
            lambda: MLPField((3, 5, 3), time="concat")(torch.zeros(2, 3)),
            "t must be given to a field with time='concat', got None",
        ),
        (
            lambda: MLPField((3, 5, 3), context_features=2)(torch.zeros(2, 3)),
            "context must be given to a field with context_features=2, got None",
        ),
        (lambda: MLPField((3, 5, 3))(torch.zeros(2, 3), None, torch.zeros(2, 2)), "context_features=None"),
        (
            lambda: MLPField((3, 5, 3), context_features=2)(torch.zeros(2, 3), None, torch.zeros(2, 3)),
            r"context must be \[N, 2\] for context_features=2, got \(2, 3\)",
        ),
        (
            lambda: MLPField((3, 5, 3), context_features=2)(torch.zeros(2, 3), None, torch.zeros(4, 2)),
            r"context must have a row for each of the 2 samples of x, got shape \(4, 2\)",
        ),
        (
            lambda: MLPField((3, 5, 3), time="concat")(torch.zeros(2, 3), torch.zeros(2)),
            r"t must be one number, the same for the batch, got shape \(2,\)",
        ),
    ],
)
def test_wrong_arguments_are_named(use, words):
    with pytest.raises(ValueError, match=words):
        use()
