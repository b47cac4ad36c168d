from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.linalg import vector_norm

from fastgen.nn.residual.lipschitz_net import ACTIVATIONS, LipschitzConvNet, LipschitzMLP

OPTIONS = {"zero": False, "coefficient": 0.9}


def nets(**options) -> dict[str, tuple[torch.nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    options = OPTIONS | options
    found = {"dense": (LipschitzMLP(3, (7, 6), **options), (3,))}
    found["convolutional"] = (LipschitzConvNet(2, (4, 3), 5, **options), (2, 4, 3))
    for net, _ in found.values():
        net.double()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(3)
        net.eval()
    return found


def plain(net, x, context):
    """Layer by layer, as the formula has it."""
    shift = 0 if context is None else net.shift(context).reshape(len(x), -1, *[1] * (x.dim() - 2))
    activations = list(net.activations)
    if net.pre_activation:
        x = activations.pop(0)(x + shift)
    for i, layer in enumerate(net.layers):
        x = layer(x)
        if i == 0 and not net.pre_activation:
            x = x + shift
        x = activations[i](x) if i < len(net.layers) - 1 else x
    return x


@pytest.mark.parametrize("kind", ["dense", "convolutional"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pre_activation", [False, True])
@pytest.mark.parametrize("context_features", [None, 4])
def test_it_is_its_layers_and_activations(kind, activation, pre_activation, context_features):
    options = {"activation": activation, "pre_activation": pre_activation, "context_features": context_features}
    net, shape = nets(**options)[kind]
    x = torch.randn(5, *shape, dtype=torch.float64)
    context = None if context_features is None else torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(net(x, context), plain(net, x, context))
    torch.testing.assert_close(net.at(context)(x), net(x, context))
    grads = [
        torch.autograd.grad(f(net, x, context).square().sum(), net.parameters()) for f in (plain, type(net).forward)
    ]
    for expected, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["dense", "convolutional"])
@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_it_moves_no_two_points_apart(kind, norm):
    net, shape = nets(norm=norm, context_features=4)[kind]
    x, y = 2 * torch.randn(2, 500, *shape, dtype=torch.float64)
    y = torch.cat((y[:250], x[250:] + 1e-4 * y[250:]))
    context = torch.randn(500, 4, dtype=torch.float64)
    with torch.no_grad():
        apart = vector_norm((net(x, context) - net(y, context)).flatten(1), norm, dim=1)
    bound = net.layers[0].coefficient ** len(net.layers)
    assert (apart <= bound * (1 + 1e-3) * vector_norm((x - y).flatten(1), norm, dim=1)).all()


@pytest.mark.parametrize(("net", "shape"), [(LipschitzMLP(3), (3,)), (LipschitzConvNet(3, (4, 4), 8), (3, 4, 4))])
def test_it_begins_at_zero_with_finite_gradients(net, shape):
    y = net(torch.randn(5, *shape))
    assert (y == 0).all()
    (y + torch.randn_like(y)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
    assert (net.layers[-1].weight.grad != 0).any()


def test_g_of_x_alone_keeps_its_weights_until_asked_again():
    net, shape = nets()["dense"]
    g, x = net.train().at(), torch.randn(5, *shape, dtype=torch.float64)
    before = g(x)
    with torch.no_grad():
        net.layers[0].weight.add_(1)
    assert torch.equal(g(x), before)
    assert not torch.equal(net(x), before)


def test_the_convolutions_pad_with_zeros():
    net, shape = nets(activation="tanh")["convolutional"]
    x = torch.randn(1, *shape, dtype=torch.float64)
    by_hand = F.conv2d(F.pad(x, (1, 1, 1, 1)), net.layers[0].bounded_weight(), net.layers[0].bias)
    torch.testing.assert_close(net.layers[0](x), by_hand)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"activation must be one of 'lip_swish'.*, got 'relu6'"):
        LipschitzMLP(2, activation="relu6")
    for wrong in ({"features": 0}, {"features": 2, "hidden": ()}, {"features": 2, "hidden": (4, 0)}):
        with pytest.raises(ValueError, match=r"features and each of hidden, one or more, must be at least 1"):
            LipschitzMLP(**wrong)
    with pytest.raises(ValueError, match=r"kernels at least 2 sizes, got 2, 8 and \(3,\)"):
        LipschitzConvNet(2, (4, 4), 8, kernels=(3,))
    with pytest.raises(ValueError, match=r"coefficient must be .*, got 1"):
        LipschitzMLP(2, coefficient=1)
    with pytest.raises(ValueError, match=r"coefficient must be .*, got 1"):
        LipschitzConvNet(2, (4, 4), 8, coefficient=1)
