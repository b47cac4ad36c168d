"""Networks whose forward writes to their own parameters, buffers and attributes.

``WRITING[name]`` is the first layer of one that is causal in raster order over ``[N, 1, H, W]`` levels in [0, 1], often
thanks to the masks that it writes; ``CHANGING`` has first layers that are another function at every call, with the name
of what changes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 5


def mask_of(weight: Tensor, centre: int = 0) -> Tensor:
    mask = torch.zeros_like(weight)
    mask[:, :, :1], mask[:, :, 1, : 1 + centre] = 1, 1
    return mask


class Masked(nn.Conv2d):
    """The commonest public masked convolution: the mask is multiplied into ``weight.data`` in ``forward``."""

    def __init__(self, inputs: int = 1, outputs: int = 6, centre: int = 0) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.register_buffer("mask", mask_of(self.weight.data, centre))

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class Broadcast(Masked):
    def __init__(self) -> None:
        super().__init__()
        self.mask = self.mask[:1, :1].clone()


class Attribute(nn.Conv2d):
    """The mask is a plain attribute, and the weight's data are assigned."""

    def __init__(self) -> None:
        super().__init__(1, 6, 3, padding=1)
        self.zeros = mask_of(self.weight.data) == 0

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.where(self.zeros, torch.zeros(()), self.weight.data)
        return super().forward(x)


class Removed(Masked):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data[self.mask == 0] = 0
        return nn.Conv2d.forward(self, x)


class WithoutGradient(Masked):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.mul_(self.mask)
        return torch.tanh(nn.Conv2d.forward(self, x))


class Helper(Masked):
    def make_causal(self) -> None:
        self.weight.data.copy_(self.weight.data * self.mask)

    def forward(self, x: Tensor) -> Tensor:
        self.make_causal()
        return nn.Conv2d.forward(self, x)


class OwnModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 1, 3, 3))
        self.register_buffer("mask", mask_of(self.weight.data), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return F.conv2d(x, self.weight, padding=1)


class WeightNorm(nn.Module):
    """vq-vae-2-pytorch's CausalConv2d; the older form of weight normalisation, the only one with ``weight_v``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.weight_norm(nn.Conv2d(1, 6, 3, padding=1))
        self.register_buffer("mask", mask_of(self.conv.weight_v.data))

    def forward(self, x: Tensor) -> Tensor:
        self.conv.weight_v.data *= self.mask
        return self.conv(x)


class Hook(nn.Module):
    """The mask is written by a hook that holds the layer it was made for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv = nn.Conv2d(1, 6, 3, padding=1)
        mask = mask_of(conv.weight.data)
        conv.register_forward_pre_hook(lambda module, inputs: (conv.weight.data.mul_(mask), None)[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class NewParameter(Masked):
    def forward(self, x: Tensor) -> Tensor:
        self.weight = nn.Parameter(self.weight * self.mask)
        return nn.Conv2d.forward(self, x)


class Shifted(nn.Conv2d):
    """Reads what is above and to the left, whatever its weights are."""

    def __init__(self) -> None:
        super().__init__(1, 6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (2, -1, 2, -1)))


class AfterUse(Shifted):
    """The mask is written after the weight was used: the second call is the first that sees it."""

    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        self.weight.data[:, :, 0, 0] = 0
        return h


class MaxNorm(nn.Module):
    """An embedding rescales the rows that it looks up."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.shifted = nn.Embedding(LEVELS, 1, max_norm=0.3), Shifted()

    def forward(self, x: Tensor) -> Tensor:
        return self.shifted(self.table((x[:, 0] * (LEVELS - 1)).round().long()).permute(0, 3, 1, 2))


class Counter(Shifted):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.seen, self.number = torch.zeros(()), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += x.sum()
        self.number += 1
        self.last = super().forward(x)
        return self.last


class TrainingOnly(Shifted):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        if self.training:
            self.mean.data.mul_(0.9).add_(h.mean((0, 2, 3)), alpha=0.1)
        return h - self.mean[:, None, None]


class WrittenStatistics(Shifted):
    """A running variance, by an operator without a rule, that only other code reads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("spread", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        self.spread.copy_(torch.linalg.matrix_norm(h).median())
        return h


class Network(nn.Module):
    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.output = first, nn.Conv2d(6, LEVELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.elu(self.first(x)))


WRITING = {
    kind.__name__: kind
    for kind in (
        Masked, Broadcast, Attribute, Removed, WithoutGradient, Helper, OwnModule, WeightNorm, Hook, NewParameter,
        AfterUse, MaxNorm, Counter, TrainingOnly, WrittenStatistics,
    )
}  # fmt: skip


class Annealed(Counter):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + self.calls)


class Halved(Shifted):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= 0.5
        return super().forward(x)


class RunningMean(TrainingOnly):
    """Centres with a mean that it goes on to update in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        self.mean += 0.1 * h.mean((0, 2, 3))
        return h


class Remembers(Shifted):
    """Adds what the last call saw."""

    memory: float | Tensor = 0.0

    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x) + self.memory
        self.memory = x.mean()
        return h


class CountsInPython(Shifted):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


CHANGING = {
    Annealed: "first.calls",
    Halved: "first.weight",
    RunningMean: "first.mean",
    Remembers: "first.memory",
    CountsInPython: "first.calls",
}
