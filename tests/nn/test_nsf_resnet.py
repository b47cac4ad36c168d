from __future__ import annotations

import pytest
import torch

from fastgen.nn import ResidualConvNet


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("context_features", [None, 3])
def test_every_parameter_is_trained(context_features, batch_norm):
    torch.manual_seed(0)
    net = ResidualConvNet(2, 5, 6, 2, context_features=context_features, batch_norm=batch_norm)
    x, context = torch.randn(4, 2, 5, 5), None if context_features is None else torch.randn(4, context_features)
    (net(x, context) * torch.randn(4, 5, 5, 5)).sum().backward()
    unused = {name for name, parameter in net.named_parameters() if not parameter.grad.any()}
    assert unused <= {f"blocks.{i}.first.bias" for i in range(2) if batch_norm}  # a normalisation takes it out again


def test_a_row_depends_on_its_own_data_and_context_in_eval_mode():
    net = ResidualConvNet(2, 5, 6, 1, context_features=3).double()
    x, context = torch.randn(4, 2, 5, 5, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    net(x, context)
    net.eval()
    whole = net(x, context)
    torch.testing.assert_close(net(x[1:2], context[1:2]), whole[1:2])
    assert (net(x, context.flip(0)) != whole).any((1, 2, 3)).all()
    assert net(x[:0], context[:0]).shape == (0, 5, 5, 5)


def test_a_pixel_is_seen_from_as_far_as_the_blocks_reach():
    net = ResidualConvNet(1, 1, 4, 2, batch_norm=False)
    x = torch.zeros(1, 1, 13, 13, requires_grad=True)
    net(x)[0, 0, 6, 6].backward()
    rows, columns = x.grad[0, 0].nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 10, 2, 10)


def test_it_begins_with_0_if_asked_and_dropout_acts_in_training_alone():
    x = torch.randn(3, 2, 4, 4)
    assert torch.equal(ResidualConvNet(2, 5, 6, zero=True)(x), torch.zeros(3, 5, 4, 4))
    net = ResidualConvNet(2, 5, 6, dropout=0.5, batch_norm=False)
    assert (net(x) != net(x)).any()
    net.eval()
    assert torch.equal(net(x), net(x))
