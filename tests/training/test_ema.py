from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from fastgen.training.ema import moving_average


def test_average_is_the_weighted_sum_of_all_weights_so_far():
    network = nn.Linear(2, 1).double()
    average = moving_average(network, 0.5)
    history, decays = [], []
    for step in range(6):
        with torch.no_grad():
            network.weight.normal_()
        average.update_parameters(network)
        history.append(network.weight.detach().clone())
        decays.append(min(0.5, (1 + step) / (10 + step)) if step else 0)
    wanted = torch.zeros_like(history[0])
    for decay, weight in zip(decays, history, strict=True):
        wanted = decay * wanted + (1 - decay) * weight
    torch.testing.assert_close(average.module.weight.detach(), wanted)


def test_constant_weights_stay_and_the_network_is_left_alone():
    network = weight_norm(nn.Conv1d(2, 3, 2))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    average = moving_average(network, 0.99)
    for _ in range(3):
        average.update_parameters(network)
    for state in (network.state_dict(), average.module.state_dict()):
        assert all(torch.equal(state[k], v) for k, v in before.items())


def test_buffers_are_copied_not_averaged():
    network = nn.BatchNorm1d(2)
    average = moving_average(network, 0.99)
    network.running_mean.fill_(3)
    average.update_parameters(network)
    assert torch.equal(average.module.running_mean, network.running_mean)


def test_the_average_cannot_be_trained():
    average = moving_average(nn.Linear(1, 1).train(), 0.9)
    assert not average.module.training
    with pytest.raises(RuntimeError, match="does not require grad"):
        average.module(torch.ones(1)).backward()
