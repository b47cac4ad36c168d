from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgen.nn import LogisticMixtureCoupling


def test_images_with_a_checkerboard_keep_its_pixels():
    checkerboard = (torch.arange(4)[:, None] + torch.arange(6)) % 2
    net = nn.Conv2d(3, 3 * (2 + 6), 3, padding=1)
    layer = LogisticMixtureCoupling(net, components=2, mask=checkerboard)
    x = torch.randn(2, 3, 4, 6)
    y, log_det = layer(x)
    assert log_det.shape == (2,)
    assert torch.equal(y[..., checkerboard == 1], x[..., checkerboard == 1])
    assert (y[..., checkerboard == 0] != x[..., checkerboard == 0]).all()
    torch.testing.assert_close(layer.inverse(y)[0], x, rtol=1e-4, atol=1e-4)


def test_every_channel_has_its_own_parameters():
    """As documented: b of all channels, a of all, then the mixture of each channel."""
    raw = torch.randn(6, 3, 2 * (2 + 6), dtype=torch.float64)

    class Given(nn.Module):
        def forward(self, kept):
            return raw.movedim(2, 1)

    layer = LogisticMixtureCoupling(Given(), components=2).double()
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    y, _ = layer(x)
    for channel in range(2):
        shift, scale = raw[..., channel], raw[..., 2 + channel].tanh().exp()
        logits, means, log_scales = raw[..., 4 + 6 * channel : 10 + 6 * channel].chunk(3, -1)
        z = (x[:, 2 + channel, :, None] - means) * (-log_scales).exp()
        cdf = (logits.softmax(-1) * z.sigmoid()).sum(-1)
        torch.testing.assert_close(y[:, 2 + channel], cdf.logit() * scale + shift)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="components must be an integer of at least 1, got 0"):
        LogisticMixtureCoupling(nn.Linear(2, 2), components=0)
    layer = LogisticMixtureCoupling(nn.Linear(2, 5), components=2)
    with pytest.raises(ValueError, match=r"net must return shape \(3, 16\), got \(3, 5\)"):
        layer(torch.randn(3, 4))
