"""Small Glows with the parameters, names and conventions of public ones, independent of fastgen's layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def squeeze(x: Tensor, order: str) -> Tensor:
    n, c, h, w = x.shape
    corners = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)  # n, row, column, c, h, w
    if order == "channel_major":
        corners = corners.permute(0, 3, 1, 2, 4, 5)
    return corners.reshape(n, 4 * c, h // 2, w // 2)


def unsqueeze(x: Tensor, order: str) -> Tensor:
    n, c, h, w = x.shape
    shape = (n, c // 4, 2, 2, h, w) if order == "channel_major" else (n, 2, 2, c // 4, h, w)
    corners = x.view(shape)
    if order == "corner_major":
        corners = corners.permute(0, 3, 1, 2, 4, 5)
    return corners.permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)


class ChannelScale(nn.Module):
    """ActNorm with a bias and a logarithm, or with a place and a scale of any sign."""

    def __init__(self, channels: int, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        numbers = torch.randn(2, 1, channels, 1, 1) / 4
        if linear:
            self.loc = nn.Parameter(numbers[0])
            self.scale = nn.Parameter((numbers[1] + 1) * (torch.randint(0, 2, numbers[1].shape) * 2 - 1))
            self.register_buffer("initialized", torch.tensor(1, dtype=torch.uint8))
        else:
            self.bias, self.logs = nn.Parameter(numbers[0]), nn.Parameter(numbers[1])

    def numbers(self, log_factor: float) -> tuple[Tensor, Tensor]:
        return (self.loc, self.scale) if self.linear else (self.bias, (log_factor * self.logs).exp())


def nearly_orthogonal(channels: int) -> Tensor:
    return torch.linalg.qr(torch.randn(channels, channels))[0] + torch.randn(channels, channels) / (10 * channels)


class Factored(nn.Module):
    """P L (U + diag(sign exp(log s))), under the names given."""

    def __init__(self, channels: int, names: tuple[str, ...]) -> None:
        super().__init__()
        permutation, lower, upper = torch.linalg.lu(nearly_orthogonal(channels))
        self.names, diagonal = names, upper.diag()
        values = (permutation, lower.tril(-1), upper.triu(1), diagonal.abs().log(), diagonal.sign())
        for i, (name, value) in enumerate(zip(names, values, strict=True)):
            if i in (0, 4):
                self.register_buffer(name, value.contiguous())
            else:
                self.register_parameter(name, nn.Parameter(value.contiguous()))

    def matrix(self) -> Tensor:
        permutation, lower, upper, log_s, sign = (getattr(self, name) for name in self.names)
        return permutation @ (lower + torch.eye(len(lower))) @ (upper + torch.diag(sign * log_s.exp()))


class Matrix(nn.Module):
    def __init__(self, channels: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(nearly_orthogonal(channels).view(shape))

    def matrix(self) -> Tensor:
        return self.weight.flatten(1)


class PublicGlow(nn.Module):
    """What all have in common; a subclass holds the parameters and says where they are.

    Options: ``lu``, ``affine``, ``learn_top``, ``classes``, and those of ``GlowConventions`` by their names.
    """

    defaults: ClassVar[dict]

    def __init__(self, channels: int, scales: int, steps: int, hidden: int, **options) -> None:
        super().__init__()
        self.scales, self.steps, self.options = scales, steps, {**self.defaults, **options}
        self.build([4 * channels * 2**i for i in range(scales)], hidden)

    def build(self, channels: list[int], hidden: int) -> None:
        raise NotImplementedError

    def parts(self, scale: int, step: int) -> tuple[ChannelScale, nn.Module, nn.Module]:
        """ActNorm, 1x1 convolution and network of a step."""
        raise NotImplementedError

    def prior(self, scale: int, kept: Tensor, condition: Tensor | None) -> Tensor:
        """Means and logarithms of scales; at the last scale of zeros, or 0."""
        raise NotImplementedError

    def halves(self, h: Tensor, order: str) -> tuple[Tensor, Tensor]:
        """Shift and scale."""
        if order == "interleaved":
            return h[:, 0::2], h[:, 1::2]
        first, second = h.chunk(2, 1)
        return (first, second) if order == "shift_first" else (second, first)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept, and the rest."""
        first, second = x.chunk(2, 1)
        return (first, second) if self.options["kept"] == "first" else (second, first)

    def join(self, kept: Tensor, rest: Tensor) -> Tensor:
        return torch.cat((kept, rest) if self.options["kept"] == "first" else (rest, kept), 1)

    def norm(self, part: ChannelScale) -> tuple[Tensor, Tensor]:
        """(scale, shift) of scale x + shift."""
        bias, scale = part.numbers(self.options["norm_log_factor"])
        shift = {"added": scale * bias, "subtracted": -scale * bias, "after_scale": bias}[self.options["norm_bias"]]
        return scale, shift

    def coupled(self, net: nn.Module, kept: Tensor) -> tuple[Tensor, Tensor]:
        h = net(kept)
        if not self.options["affine"]:
            return h, torch.ones_like(h)
        shift, raw = self.halves(h, self.options["coupling"])
        return shift, torch.sigmoid(raw + self.options["sigmoid_offset"])

    def log_prob(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x, total = x - self.options["data_offset"], 0
        for i in range(self.scales):
            x = squeeze(x, self.options["squeeze"])
            pixels = x.shape[2] * x.shape[3]
            for j in range(self.steps):
                norm, matrix, net = self.parts(i, j)
                scale, shift = self.norm(norm)
                x = F.conv2d(x * scale + shift, matrix.matrix()[:, :, None, None])
                total = total + pixels * (scale.abs().log().sum() + torch.linalg.slogdet(matrix.matrix())[1])
                kept, rest = self.split(x)
                shift, scale = self.coupled(net, kept)
                x, total = self.join(kept, (rest + shift) * scale), total + scale.log().flatten(1).sum(1)
            kept, rest = self.split(x) if i < self.scales - 1 else (torch.zeros_like(x), x)
            mean, log_scale = self.prior_halves(i, kept, condition)
            density = -(((rest - mean) / log_scale.exp()) ** 2) / 2 - log_scale - math.log(2 * math.pi) / 2
            x, total = kept, total + density.flatten(1).sum(1)
        return total

    def decode(self, noise: list[Tensor], condition: Tensor | None = None) -> Tensor:
        """x of standard normal numbers for what leaves at each scale."""
        x = torch.empty(0)
        for i in reversed(range(self.scales)):
            top = i == self.scales - 1
            mean, log_scale = self.prior_halves(i, torch.zeros_like(noise[i]) if top else x, condition)
            rest = mean + log_scale.exp() * noise[i]
            x = rest if top else self.join(x, rest)
            for j in reversed(range(self.steps)):
                norm, matrix, net = self.parts(i, j)
                kept, rest = self.split(x)
                shift, scale = self.coupled(net, kept)
                x = F.conv2d(self.join(kept, rest / scale - shift), matrix.matrix().inverse()[:, :, None, None])
                scale, shift = self.norm(norm)
                x = (x - shift) / scale
            x = unsqueeze(x, self.options["squeeze"])
        return x + self.options["data_offset"]

    def prior_halves(self, scale: int, kept: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        order = self.options["top_prior" if scale == self.scales - 1 else "split_prior"]
        return self.halves(self.prior(scale, kept, condition), order)


class PaddedConv(nn.Module):
    """A convolution on a frame of ones, times the exponential of three logarithms."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(inputs, outputs, 3), nn.Parameter(torch.randn(1, outputs, 1, 1) / 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, [1, 1, 1, 1], value=1.0)) * (3 * self.scale).exp()


class RosinalityGlow(PublicGlow):
    """Blocks of flows, under the names of github.com/rosinality/glow-pytorch."""

    defaults: ClassVar[dict] = {
        "lu": True, "affine": True, "squeeze": "channel_major", "kept": "first", "coupling": "scale_first",
        "split_prior": "shift_first", "top_prior": "shift_first", "sigmoid_offset": 2.0, "norm_log_factor": 1.0,
        "norm_bias": "added", "data_offset": 0.5,
    }  # fmt: skip

    def build(self, channels: list[int], hidden: int) -> None:
        self.blocks = nn.ModuleList()
        for i, c in enumerate(channels):
            block, top = nn.Module(), i == len(channels) - 1
            block.flows = nn.ModuleList(self.flow(c, hidden, top) for _ in range(self.steps))
            block.prior = PaddedConv(c, 2 * c) if top else PaddedConv(c // 2, c)
            self.blocks.append(block)

    def flow(self, c: int, hidden: int, top: bool) -> nn.Module:
        flow, factored = nn.Module(), self.options["lu"] or top  # the last block is factored in any case
        flow.actnorm = ChannelScale(c, linear=True)
        names = ("w_p", "w_l", "w_u", "w_s", "s_sign")
        flow.invconv = Factored(c, names) if factored else Matrix(c, (c, c, 1, 1))
        flow.coupling = nn.Module()
        flow.coupling.net = nn.Sequential(
            nn.Conv2d(c // 2, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(),
            PaddedConv(hidden, c if self.options["affine"] else c // 2),
        )
        return flow

    def parts(self, scale: int, step: int):
        flow = self.blocks[scale].flows[step]
        return flow.actnorm, flow.invconv, flow.coupling.net

    def prior(self, scale: int, kept: Tensor, condition: Tensor | None) -> Tensor:
        return self.blocks[scale].prior(kept)


class NormedConv(nn.Conv2d):
    """A convolution without bias, and an ActNorm."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, norm: Callable) -> None:
        super().__init__(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=False)
        self.actnorm, self.norm = ChannelScale(outputs, linear=False), norm

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.norm(self.actnorm)
        return super().forward(x) * scale + shift


class ZeroedConv(nn.Conv2d):
    """A convolution times the exponential of three logarithms."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.logs = nn.Parameter(torch.randn(outputs, 1, 1) / 10)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (3 * self.logs).exp()


class ZeroedLinear(nn.Linear):
    """A linear map times the exponential of three logarithms."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.logs = nn.Parameter(torch.randn(outputs) / 10)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (3 * self.logs).exp()


class ChaiyujinGlow(PublicGlow):
    """One list of layers, under the names of github.com/chaiyujin/glow-pytorch."""

    normed, zeroed, linear = NormedConv, ZeroedConv, ZeroedLinear
    net, top, factors = "f", "learn_top", ("p", "l", "u", "log_s", "sign_s")
    defaults: ClassVar[dict] = {
        "lu": False, "affine": True, "squeeze": "channel_major", "kept": "first", "coupling": "interleaved",
        "split_prior": "interleaved", "top_prior": "shift_first", "sigmoid_offset": 2.0, "norm_log_factor": 1.0,
        "norm_bias": "added", "data_offset": 0.0, "learn_top": True, "classes": 0,
    }  # fmt: skip

    def build(self, channels: list[int], hidden: int) -> None:
        self.flow = nn.Module()
        self.flow.layers = nn.ModuleList()
        for i, c in enumerate(channels):
            self.flow.layers.append(nn.Identity())  # the squeeze
            self.flow.layers.extend(self.step(c, hidden) for _ in range(self.steps))
            if i < len(channels) - 1:
                split = nn.Module()
                split.conv = self.zeroed(c // 2, c)
                self.flow.layers.append(split)
        if self.options["learn_top"]:
            setattr(self, self.top, self.zeroed(2 * channels[-1], 2 * channels[-1]))
        if classes := self.options["classes"]:
            self.project_ycond = self.linear(classes, 2 * channels[-1])
            self.project_class = self.linear(channels[-1], classes)
        self.prior_h = nn.Parameter(torch.zeros(2, 2 * channels[-1], 1, 1))

    def step(self, c: int, hidden: int) -> nn.Module:
        step = nn.Module()
        step.actnorm = ChannelScale(c, linear=False)
        step.invconv = Factored(c, self.factors) if self.options["lu"] else Matrix(c, (c, c))
        outputs = c if self.options["affine"] else c // 2
        net = nn.Sequential(
            self.normed(c // 2, hidden, 3, self.norm),
            nn.ReLU(),
            self.normed(hidden, hidden, 1, self.norm),
            nn.ReLU(),
            self.zeroed(hidden, outputs),
        )
        step.add_module(self.net, net)
        return step

    def parts(self, scale: int, step: int):
        layer = self.flow.layers[scale * (self.steps + 2) + 1 + step]
        return layer.actnorm, layer.invconv, getattr(layer, self.net)

    def prior(self, scale: int, kept: Tensor, condition: Tensor | None) -> Tensor:
        if scale < self.scales - 1:
            return self.flow.layers[scale * (self.steps + 2) + 1 + self.steps].conv(kept)
        zeros = torch.cat((kept, kept), 1)
        h = getattr(self, self.top)(zeros) if self.options["learn_top"] else zeros
        return h if condition is None else h + self.project_ycond(condition)[:, :, None, None]


class InnerNormedConv(nn.Module):
    """A convolution without bias, and an ActNorm, side by side."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, norm: Callable) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=False)
        self.actnorm, self.norm = ChannelScale(outputs, linear=False), norm

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.norm(self.actnorm)
        return self.conv(x) * scale + shift


class InnerZeroedConv(nn.Module):
    """A convolution in a module with the three logarithms."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.logs = nn.Parameter(torch.randn(outputs, 1, 1) / 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * (3 * self.logs).exp()


class InnerZeroedLinear(nn.Module):
    """A linear map in a module with the three logarithms."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.logs = nn.Linear(inputs, outputs), nn.Parameter(torch.randn(outputs) / 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (3 * self.logs).exp()


class Y0astGlow(ChaiyujinGlow):
    """The same under the names of github.com/y0ast/Glow-PyTorch."""

    normed, zeroed, linear = InnerNormedConv, InnerZeroedConv, InnerZeroedLinear
    net, top, factors = "block", "learn_top_fn", ("p", "lower", "upper", "log_s", "sign_s")
    defaults: ClassVar[dict] = ChaiyujinGlow.defaults | {"data_offset": 0.5}
