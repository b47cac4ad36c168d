from __future__ import annotations

import pytest
import torch

from fastgen.nn import ConvResNet


@pytest.mark.parametrize("context_features", [None, 3])
def test_the_outputs_begin_as_0_and_every_parameter_is_trained(context_features):
    torch.manual_seed(0)
    net = ConvResNet(2, 5, hidden=6, blocks=2, context_features=context_features)
    x, context = torch.randn(4, 2, 5, 5), None if context_features is None else torch.randn(4, context_features)
    assert torch.equal(net(x, context), torch.zeros(4, 5, 5, 5))
    torch.nn.init.ones_(net.last.parametrizations.weight.original0)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    (net(x, context) * torch.randn(4, 5, 5, 5)).sum().backward()
    optimizer.step()
    assert [name for name, parameter in net.named_parameters() if torch.equal(parameter, before[name])] == []


def test_all_convolutions_are_weight_normalised():
    """Their weights keep the norms that are learned, whatever becomes of the directions."""
    net = ConvResNet(2, 5, hidden=6, blocks=2)
    layers = [layer for layer in net.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert len(layers) == 1 + 2 * 2 + 3 + 1
    for layer in layers:
        norm, direction = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
        torch.nn.init.uniform_(norm, 0.5, 2)
        torch.nn.init.normal_(direction)
        torch.testing.assert_close(layer.weight.flatten(1).norm(dim=1), norm.flatten())


def test_a_row_depends_on_its_own_data_and_context_in_eval_mode():
    net = ConvResNet(2, 5, hidden=6, blocks=1, context_features=3).double()
    torch.nn.init.ones_(net.last.parametrizations.weight.original0)
    x, context = torch.randn(4, 2, 5, 5, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    net(x, context)
    net.eval()
    whole = net(x, context)
    torch.testing.assert_close(net(x[1:2], context[1:2]), whole[1:2])
    assert (net(x, context.flip(0)) != whole).any((1, 2, 3)).all()
    assert net(x[:0], context[:0]).shape == (0, 5, 5, 5)
