from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastgen.nn import ConvConditioner, EdgeConv2d, ZeroConv2d


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_the_edge_bias_is_one_more_channel_that_is_1_on_the_padding(kernel_size):
    layer, pad = EdgeConv2d(2, 3, kernel_size, edge_bias=True).double(), 4 * [kernel_size // 2]
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(4, 2, 6, 7, dtype=torch.float64)
    padded = torch.cat((F.pad(x, pad), F.pad(torch.zeros_like(x[:, :1]), pad, value=1.0)), 1)
    wanted = F.conv2d(padded, torch.cat((layer.weight, layer.edge_weight), 1), layer.bias)
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize(("kernel_size", "edge_bias"), [(2, False), (1, True)])
def test_a_kernel_that_cannot_be_is_refused(kernel_size, edge_bias):
    with pytest.raises(ValueError, match=f"kernel_size must be odd, .*got {kernel_size}"):
        EdgeConv2d(2, 3, kernel_size, edge_bias=edge_bias)


def test_zero_conv_begins_at_0_and_scales_channels_by_the_exp_of_three_times_the_logarithm():
    layer = ZeroConv2d(2, 3, context_features=4, edge_bias=True).double()
    x, context = torch.randn(5, 2, 6, 6, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    assert (layer(x, context) == 0).all()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    before = layer(x, context)
    torch.testing.assert_close(before.mean((2, 3)) - layer(x, 0 * context).mean((2, 3)), _context_part(layer, context))
    with torch.no_grad():
        layer.log_scale += torch.tensor([0.0, 0.5, -1.0])
    factor = torch.tensor([0.0, 1.5, -3.0], dtype=torch.float64).exp()
    torch.testing.assert_close(layer(x, context), before * factor[:, None, None])


def _context_part(layer: ZeroConv2d, context: torch.Tensor) -> torch.Tensor:
    return (context @ layer.context.weight.T) * (3 * layer.log_scale).exp()


@pytest.mark.parametrize("context_features", [None, 3])
@pytest.mark.parametrize("edge_bias", [False, True])
def test_the_network_normalises_both_hidden_layers_by_its_first_batch(context_features, edge_bias):
    net = ConvConditioner(2, 4, hidden=6, context_features=context_features, edge_bias=edge_bias)
    seen = []
    for norm in (net.first_norm, net.second_norm):
        norm.register_forward_hook(lambda _, inputs, outputs: seen.append(outputs[0]))
    context = None if context_features is None else torch.randn(8, context_features)
    assert torch.equal(net(3 * torch.randn(8, 2, 5, 5), context), torch.zeros(8, 4, 5, 5))
    for hidden in seen:
        variance, mean = torch.var_mean(hidden, (0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros(6), rtol=0, atol=1e-4)
        torch.testing.assert_close(variance, torch.ones(6), rtol=0, atol=1e-3)


def test_the_network_sees_3x3_then_a_pixel_then_3x3():
    net = ConvConditioner(1, 2, hidden=4).double().eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, 1, 9, 9, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x)[0, :, 4, 4].sum(), x)
    reached = F.pad(torch.ones(1, 1, 5, 5), (2, 2, 2, 2)).bool()
    assert (gradient[~reached] == 0).all()
    assert (gradient[reached] != 0).sum() > 9
