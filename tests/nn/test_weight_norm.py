from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgen.nn import apply_weight_norm, initialize_weight_norm


def network() -> nn.Sequential:
    layers = (
        nn.Conv2d(3, 5, 3),
        nn.ELU(),
        nn.ConvTranspose2d(5, 4, 2, stride=2),
        nn.ELU(),
        nn.Flatten(2),
        nn.Linear(36, 6),
    )
    return nn.Sequential(*layers).double()


def test_every_output_channel_has_norm_one_and_no_bias():
    net = apply_weight_norm(network())
    for layer, dims in ((net[0], (1, 2, 3)), (net[2], (0, 2, 3)), (net[5], (1,))):
        norms = layer.weight.square().sum(dims).sqrt()
        torch.testing.assert_close(norms, torch.ones_like(norms))
        assert (layer.bias == 0).all()


def test_initialisation_gives_every_channel_mean_zero_and_the_deviation_asked_for():
    net = apply_weight_norm(network())
    x = torch.randn(7, 3, 5, 5, dtype=torch.float64)
    initialize_weight_norm(net, lambda: net(x), {net[2]: 0.1})
    for depth, scale in ((1, 1.0), (3, 0.1), (6, 1.0)):
        y = net[:depth](x)
        dims = tuple(d for d in range(y.dim()) if d != (1 if y.dim() == 4 else y.dim() - 1))
        mean, deviation = y.mean(dims), y.std(dims, correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean))
        torch.testing.assert_close(deviation, torch.full_like(deviation, scale))


def test_a_channel_that_is_constant_over_the_batch_keeps_its_scale():
    """The kind of reports_actnorm_constant_channel."""
    net = apply_weight_norm(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)).double())
    with torch.no_grad():
        net[0].parametrizations.weight.original1[1] = torch.tensor([0.0, 1.0])
    x = torch.stack([torch.randn(9), torch.full((9,), 4.0)], 1).double()
    with pytest.warns(RuntimeWarning, match=r"initialize_weight_norm: 1 of 3 channels .* \(channel 1 is the first"):
        initialize_weight_norm(net, lambda: net(x))
    gain = net[0].parametrizations.weight.original0[:, 0]
    assert gain[1] == 1
    assert (gain[::2] != 1).all()
    torch.testing.assert_close(net[0](x)[:, 1], torch.zeros(9, dtype=torch.float64))
