from __future__ import annotations

import pytest
import torch

from fastgen.nn import CubicSpline, RationalQuadraticSpline

LAYERS = pytest.mark.parametrize("layer_type", [CubicSpline, RationalQuadraticSpline])


@LAYERS
@pytest.mark.parametrize("tails", ["linear", "bounded", "circular"])
def test_it_begins_as_the_identity(layer_type, tails):
    x = torch.rand(20, 3) * 5 - 2.5
    y, log_det = layer_type((3,), bins=5, tails=tails)(x)
    torch.testing.assert_close(y, x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_det, torch.zeros(20), rtol=0, atol=1e-4)


@LAYERS
def test_an_empty_batch_and_its_gradients(layer_type):
    layer = layer_type((3,))
    y, log_det = layer(torch.zeros(0, 3))
    (y.sum() + log_det.sum()).backward()
    assert (layer.raw.grad == 0).all()


@LAYERS
def test_training_moves_the_spline_to_a_density(layer_type):
    """The maximum-likelihood spline of exponential samples has a lower loss than the identity."""
    x = torch.empty(512, 1).exponential_(generator=torch.Generator().manual_seed(0)) - 1
    layer = layer_type((1,), bins=8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        y, log_det = layer(x)
        loss = (y.square().sum(1) / 2 - log_det).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


@LAYERS
@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda layer_type: layer_type((2,), bins=0), "bins must be an integer of at least 1, got 0"),
        (
            lambda layer_type: layer_type((2,), tails="none"),
            "tails must be one of 'bounded', 'linear', 'circular', got 'none'",
        ),
        (lambda layer_type: layer_type((2,))(torch.zeros(3, 4)), r"x must have shape .*got \(3, 4\)"),
        (
            lambda layer_type: layer_type((2,))(torch.zeros(3, 2), torch.zeros(3, 2, 5)),
            r"parameters must have shape .*got \(3, 2, 5\)",
        ),
    ],
)
def test_wrong_arguments_are_named(layer_type, use, message):
    with pytest.raises(ValueError, match=message):
        use(layer_type)


@pytest.mark.parametrize("min_derivative", [0.0, 1.0])
def test_a_least_derivative_leaves_room_for_the_identity(min_derivative):
    with pytest.raises(ValueError, match=f"min_derivative must be .*, got {min_derivative}"):
        RationalQuadraticSpline((2,), min_derivative=min_derivative)
