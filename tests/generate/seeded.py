"""Networks with seeded weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def built(make: Callable[[], nn.Module], gain: float = 1.8) -> nn.Module:
    """The network in eval mode with seeded weights, widened so that its output depends visibly on its input."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = make().eval()
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1 and not name.endswith("original1"):
                parameter.mul_(gain)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.2)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return module
