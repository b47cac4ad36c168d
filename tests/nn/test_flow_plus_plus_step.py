from __future__ import annotations

import pytest
import torch

from fastgen.nn import ActNorm, FlowPlusPlusStep
from fastgen.nn.coupling.flow_plus_plus_step import Halves


@pytest.mark.parametrize("swap", [False, True])
def test_one_half_is_kept_and_the_other_depends_on_it(swap):
    step = FlowPlusPlusStep((4, 1, 2), 8, 1, 3, heads=2, context_features=2, swap=swap).double()
    x, context = torch.randn(6, 4, 1, 2, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    step(x, context)
    step.eval()
    jacobian = torch.autograd.functional.jacobian(lambda x: step(x, context)[0].sum(0), x).movedim(3, 0)
    kept, transformed = (slice(2, 4), slice(0, 2)) if swap else (slice(0, 2), slice(2, 4))
    assert (jacobian[:, kept, :, :, transformed] == 0).all()
    assert (jacobian[:, transformed, :, :, kept] != 0).all()


def test_halves_are_two_layers():
    first, second, x = ActNorm(2), ActNorm(2), torch.randn(5, 4, 3)
    layer = Halves(first, second)
    y, log_det = layer(x)
    torch.testing.assert_close(y, torch.cat((first(x[:, :2])[0], second(x[:, 2:])[0]), 1))
    torch.testing.assert_close(log_det, first(x[:, :2])[1] + second(x[:, 2:])[1])
    torch.testing.assert_close(layer.inverse(y)[0], x)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"shape must have an even number of channels, to be halved, got \(3, 2, 2\)"):
        FlowPlusPlusStep((3, 2, 2))
    with pytest.raises(ValueError, match="with C even"):
        Halves(ActNorm(1), ActNorm(1))(torch.zeros(1, 3))
