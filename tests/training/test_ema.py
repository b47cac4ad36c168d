from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from fastgen.training.ema import MovingAverage


def test_average_is_the_weighted_sum_of_all_weights_so_far():
    network = nn.Linear(2, 1).double()
    average = MovingAverage(network, 0.5)
    history, decays = [network.weight.detach().clone()], []
    for step in range(6):
        with torch.no_grad():
            network.weight.normal_()
        average.update(network, step)
        history.append(network.weight.detach().clone())
        decays.append(min(0.5, (1 + step) / (10 + step)))
    wanted = history[0]
    for decay, weight in zip(decays, history[1:], strict=True):
        wanted = decay * wanted + (1 - decay) * weight
    torch.testing.assert_close(average.model.weight.detach(), wanted)


def test_constant_weights_stay_and_the_network_is_left_alone():
    network = weight_norm(nn.Conv1d(2, 3, 2))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    average = MovingAverage(network, 0.99)
    for step in range(3):
        average.update(network, step)
    for state in (network.state_dict(), average.model.state_dict()):
        assert all(torch.equal(state[k], v) for k, v in before.items())


def test_buffers_are_copied_not_averaged():
    network = nn.BatchNorm1d(2)
    average = MovingAverage(network, 0.99)
    network.running_mean.fill_(3)
    average.update(network, 0)
    assert torch.equal(average.model.running_mean, network.running_mean)


def test_the_average_cannot_be_trained():
    average = MovingAverage(nn.Linear(1, 1).train(), 0.9)
    assert not average.model.training
    with pytest.raises(RuntimeError, match="does not require grad"):
        average.model(torch.ones(1)).backward()
