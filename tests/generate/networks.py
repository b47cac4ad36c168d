"""Small causal networks that follow the structure of public code which knows nothing of fastgen.

``NETWORKS[name]()`` gives ``(module, event_shape, head, order, predicts, adapter)``; the module is in eval mode and its
weights are seeded. Sequence networks take any length. ``order`` is a name, or the flat elements in their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from fastgen.generate import heads

LEVELS = 11


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


class OneHot(nn.Module):
    """Integer tokens [N, T] for a network that reads one-hot floats [N, V, T]."""

    def __init__(self, network: nn.Module, levels: int) -> None:
        super().__init__()
        self.network, self.levels = network, levels

    def forward(self, x: Tensor) -> Tensor:
        return self.network(F.one_hot(x, self.levels).transpose(1, 2).float())


# ---- 1. PixelCNN++ as PyTorch ports write it ----


def concat_elu(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], dim=len(x.size()) - 3))


def down_shift(x: Tensor) -> Tensor:
    return nn.ConstantPad2d((0, 0, 1, 0), 0.0)(x[:, :, : x.size(2) - 1, :])


def right_shift(x: Tensor) -> Tensor:
    return nn.ConstantPad2d((1, 0, 0, 0), 0.0)(x[:, :, :, : x.size(3) - 1])


class Nin(nn.Module):
    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.lin = weight_norm(nn.Linear(dim_in, dim_out))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        n, h, w, c = (int(size) for size in x.size())
        return self.lin(x.contiguous().view(n * h * w, c)).view(n, h, w, -1).permute(0, 3, 1, 2)


class DownConv(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, size=(2, 3), stride=(1, 1), shift: bool = False) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d(((size[1] - 1) // 2, (size[1] - 1) // 2, size[0] - 1, 0))
        self.conv = weight_norm(nn.Conv2d(dim_in, dim_out, size, stride))
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.pad(x))
        return down_shift(x) if self.shift else x


class DownRightConv(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, size=(2, 2), stride=(1, 1), shift: bool = False) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((size[1] - 1, 0, size[0] - 1, 0))
        self.conv = weight_norm(nn.Conv2d(dim_in, dim_out, size, stride))
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.pad(x))
        return right_shift(x) if self.shift else x


class DownDeconv(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.deconv = weight_norm(nn.ConvTranspose2d(dim, dim, (2, 3), 2, output_padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.deconv(x)
        return x[:, :, : x.size(2) - 1, 1 : x.size(3) - 1]


class DownRightDeconv(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.deconv = weight_norm(nn.ConvTranspose2d(dim, dim, (2, 2), 2, output_padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.deconv(x)
        return x[:, :, : x.size(2) - 1, : x.size(3) - 1]


class GatedResnet(nn.Module):
    def __init__(self, dim: int, conv: type[nn.Module], skips: int) -> None:
        super().__init__()
        self.conv_input = conv(2 * dim, dim)
        self.nin_skip = Nin(2 * skips * dim, dim) if skips else None
        self.dropout = nn.Dropout2d(0.5)
        self.conv_out = conv(2 * dim, 2 * dim)

    def forward(self, og_x: Tensor, a: Tensor | None = None) -> Tensor:
        x = self.conv_input(concat_elu(og_x))
        if a is not None:
            x += self.nin_skip(concat_elu(a))
        a, b = torch.chunk(self.conv_out(self.dropout(concat_elu(x))), 2, dim=1)
        return og_x + a * torch.sigmoid(b)


class PortedPixelCNNpp(nn.Module):
    def __init__(self, channels: int = 3, dim: int = 6, resnets: int = 1, mixtures: int = 2) -> None:
        super().__init__()
        self.u_init = DownConv(channels + 1, dim, (2, 3), shift=True)
        self.ul_init_row = DownConv(channels + 1, dim, (1, 3), shift=True)
        self.ul_init_pixel = DownRightConv(channels + 1, dim, (2, 1), shift=True)
        self.up_u = nn.ModuleList(GatedResnet(dim, DownConv, 0) for _ in range(3 * resnets))
        self.up_ul = nn.ModuleList(GatedResnet(dim, DownRightConv, 1) for _ in range(3 * resnets))
        self.half_u = nn.ModuleList(DownConv(dim, dim, stride=(2, 2)) for _ in range(2))
        self.half_ul = nn.ModuleList(DownRightConv(dim, dim, stride=(2, 2)) for _ in range(2))
        down = 3 * resnets + 2
        self.down_u = nn.ModuleList(GatedResnet(dim, DownConv, 1) for _ in range(down))
        self.down_ul = nn.ModuleList(GatedResnet(dim, DownRightConv, 2) for _ in range(down))
        self.double_u = nn.ModuleList(DownDeconv(dim) for _ in range(2))
        self.double_ul = nn.ModuleList(DownRightDeconv(dim) for _ in range(2))
        self.nin_out = Nin(dim, (3 if channels == 1 else 10) * mixtures)
        self.resnets = resnets

    def forward(self, x: Tensor) -> Tensor:
        size = [int(s) for s in x.size()]
        x = torch.cat([x, torch.ones(size[0], 1, size[2], size[3])], dim=1)
        us, uls = [self.u_init(x)], [self.ul_init_row(x) + self.ul_init_pixel(x)]
        for level in range(3):
            for i in range(level * self.resnets, (level + 1) * self.resnets):
                us.append(self.up_u[i](us[-1]))
                uls.append(self.up_ul[i](uls[-1], a=us[-1]))
            if level < 2:
                us.append(self.half_u[level](us[-1]))
                uls.append(self.half_ul[level](uls[-1]))
        u, ul, block = us.pop(), uls.pop(), 0
        for level in range(3):
            for _ in range(self.resnets + (level > 0)):
                u = self.down_u[block](u, a=us.pop())
                ul = self.down_ul[block](ul, a=torch.cat([u, uls.pop()], 1))
                block += 1
            if level < 2:
                u, ul = self.double_u[level](u), self.double_ul[level](ul)
        return self.nin_out(F.elu(ul))


def pixelcnn_pp_port():
    module = built(PortedPixelCNNpp)
    return module, (3, 16, 16), heads.DiscretizedLogisticMixture(2), "raster", "same", None


def pixelcnn_pp_port_grey():
    head = heads.DiscretizedLogisticMixture(3, levels=17)
    return built(lambda: PortedPixelCNNpp(1, 5, 2, 3)), (1, 8, 12), head, "raster", "same", None


# ---- 2. WaveNet with one-hot input, padded convolutions and a crop ----


class GatedLayer(nn.Module):
    def __init__(self, residual: int, gate: int, skip: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.05)
        self.conv = weight_norm(nn.Conv1d(residual, gate, kernel, padding=(kernel - 1) * dilation, dilation=dilation))
        self.conv1x1_out = weight_norm(nn.Conv1d(gate // 2, residual, 1))
        self.conv1x1_skip = weight_norm(nn.Conv1d(gate // 2, skip, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        residual = x
        x = self.conv(self.dropout(x))
        x = x[:, :, : residual.size(-1)]
        a, b = x.split(x.size(1) // 2, dim=1)
        x = torch.tanh(a) * torch.sigmoid(b)
        return (self.conv1x1_out(x) + residual) * math.sqrt(0.5), self.conv1x1_skip(x)


class OneHotWaveNet(nn.Module):
    def __init__(self, levels: int = LEVELS, residual: int = 12, gate: int = 20, skip: int = 14) -> None:
        super().__init__()
        self.first_conv = nn.Conv1d(levels, residual, 1)
        self.layers = nn.ModuleList(GatedLayer(residual, gate, skip, 3, 2 ** (i % 3)) for i in range(5))
        self.last = nn.Sequential(
            nn.ReLU(inplace=True), nn.Conv1d(skip, skip, 1), nn.ReLU(inplace=True), nn.Conv1d(skip, levels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.first_conv(x), 0
        for layer in self.layers:
            x, skip = layer(x)
            skips += skip
        return self.last(skips * math.sqrt(1 / len(self.layers)))


def wavenet_one_hot():
    return built(lambda: OneHot(OneHotWaveNet(), LEVELS), 4.0), (40,), heads.Categorical(LEVELS), "time", "next", None


# ---- 3. WaveNet that folds dilation into the batch ----


def dilate(x: Tensor, dilation: int, before: int) -> Tensor:
    """[n * before, c, l] with every ``before``-th sample in a row of the batch -> the same for ``dilation``."""
    n, c, length = x.size()
    if dilation > before:
        x = F.pad(x, (-length % (dilation // before), 0))
    rows = n * dilation // before
    return x.permute(1, 2, 0).contiguous().view(c, -1, rows).permute(2, 0, 1).contiguous()


class BatchFoldedWaveNet(nn.Module):
    def __init__(self, levels: int = LEVELS, channels: int = 10, skip: int = 12, dilations=(1, 2, 4, 1, 2, 4)) -> None:
        super().__init__()
        self.dilations, self.levels = dilations, levels
        self.start_conv = nn.Conv1d(levels, channels, 1)
        self.filter_convs = nn.ModuleList(nn.Conv1d(channels, channels, 2) for _ in dilations)
        self.gate_convs = nn.ModuleList(nn.Conv1d(channels, channels, 2) for _ in dilations)
        self.residual_convs = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in dilations)
        self.skip_convs = nn.ModuleList(nn.Conv1d(channels, skip, 1) for _ in dilations)
        self.end_conv = nn.Conv1d(skip, levels, 1)

    def forward(self, x: Tensor) -> Tensor:
        length, before, skip = x.size(-1), 1, None
        x = self.start_conv(F.pad(x, (sum(self.dilations) + 1, -1)))
        for i, dilation in enumerate(self.dilations):
            residual = dilate(x, dilation, before)
            x = torch.tanh(self.filter_convs[i](residual)) * torch.sigmoid(self.gate_convs[i](residual))
            s = self.skip_convs[i](dilate(x, 1, dilation) if dilation > 1 else x)[:, :, -length:]
            skip = s if skip is None else s + skip
            x = self.residual_convs[i](x) + residual[:, :, 1:]
            before = dilation
        return self.end_conv(F.relu(skip))


def wavenet_batch_folded():
    return built(lambda: OneHot(BatchFoldedWaveNet(), LEVELS)), (37,), heads.Categorical(LEVELS), "time", "same", None


# ---- 4. a token network, [B, T] -> [B, T, V] ----


class TokenNetwork(nn.Module):
    def __init__(self, levels: int = LEVELS, dim: int = 16, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(levels, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2 * layers + 1))
        self.mixers = nn.ModuleList(nn.Conv1d(dim, dim, 4, groups=dim) for _ in range(layers))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)) for _ in range(layers)
        )
        self.output = nn.Linear(dim, levels, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for i, (mixer, mlp) in enumerate(zip(self.mixers, self.mlps, strict=True)):
            h = F.pad(self.norms[2 * i](x).transpose(1, 2), (3, 0))
            x = x + F.silu(mixer(h)).transpose(1, 2)
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.output(self.norms[-1](x))


def tokens_last():
    return built(TokenNetwork), (24,), heads.Categorical(LEVELS), "time", "next", lambda output: output.transpose(1, 2)


# ---- 5. temporal convolutional network on a piano roll ----


class Chomp1d(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, dim_in: int, dim: int, kernel: int, dilation: int) -> None:
        super().__init__()
        pad, layers = (kernel - 1) * dilation, []
        for source in (dim_in, dim):
            conv = weight_norm(nn.Conv1d(source, dim, kernel, padding=pad, dilation=dilation))
            layers += [conv, Chomp1d(pad), nn.ReLU(), nn.Dropout(0.2)]
        self.net = nn.Sequential(*layers)
        self.downsample = nn.Conv1d(dim_in, dim, 1) if dim_in != dim else None

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.net(x) + (x if self.downsample is None else self.downsample(x)))


class TemporalConvNet(nn.Module):
    def __init__(self, keys: int = 5, dim: int = 9) -> None:
        super().__init__()
        blocks = [TemporalBlock(keys if i == 0 else dim, dim, 3, 2**i) for i in range(3)]
        self.tcn = nn.Sequential(*blocks)
        self.linear = nn.Linear(dim, keys)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.tcn(x).transpose(1, 2)).transpose(1, 2)


def temporal_conv_net():
    return built(TemporalConvNet), (5, 48), heads.Bernoulli(to_input="unit"), "time", "next", None


# ---- 6. causal U-Net over a waveform ----


class CausalUNet1d(nn.Module):
    """Two stride-2 levels; a coarse cell is final only after its whole window, so it is delayed by one."""

    def __init__(self, dim: int = 8, mixtures: int = 2) -> None:
        super().__init__()
        self.input = nn.Conv1d(1, dim, 2)
        self.downs = nn.ModuleList(nn.Conv1d(dim, dim, 4, stride=2) for _ in range(2))
        self.middle = nn.Conv1d(dim, dim, 3)
        self.ups = nn.ModuleList(nn.ConvTranspose1d(dim, dim, 2, stride=2) for _ in range(2))
        self.merges = nn.ModuleList(nn.Conv1d(dim, dim, 2) for _ in range(2))
        self.output = nn.Conv1d(dim, 3 * mixtures, 1)

    def forward(self, x: Tensor) -> Tensor:
        length = x.size(-1)
        x = F.pad(x, (1, -length % 4 - 1))
        x = F.leaky_relu(self.input(F.pad(x, (1, 0))), 0.1)
        skips = []
        for down in self.downs:
            skips.append(x)
            x = F.leaky_relu(down(F.pad(x, (2, 0))), 0.1)
        x = x + torch.tanh(self.middle(F.pad(x, (2, 0))))
        for up, merge in zip(self.ups, self.merges, strict=True):
            x = up(F.pad(x, (1, -1))) + skips.pop()
            x = F.leaky_relu(merge(F.pad(x, (1, 0))), 0.1)
        return self.output(x)[..., :length]


def causal_unet():
    head = heads.DiscretizedLogisticMixture(2, levels=32)
    return built(CausalUNet1d), (1, 44), head, "time", "same", None


# ---- 7. grouped, dilated, masked convolutions of an odd size ----


class MaskedConv(nn.Conv2d):
    """The mask is a buffer that multiplies the weight; type "A" hides the pixel itself."""

    def __init__(self, mask_type: str, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        _, _, h, w = self.weight.size()
        mask = torch.ones(h, w)
        mask[h // 2, w // 2 + (mask_type == "B") :] = 0
        mask[h // 2 + 1 :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class MaskedStack(nn.Module):
    def __init__(self, levels: int = 5, dim: int = 8) -> None:
        super().__init__()
        self.first = MaskedConv("A", 1, dim, (5, 7), padding=(2, 3))
        self.grouped = MaskedConv("B", dim, dim, (3, 5), padding=(1, 2), groups=2)
        self.dilated = MaskedConv("B", dim, dim, 3, padding=(2, 4), dilation=(2, 4), groups=4)
        self.norm = nn.BatchNorm2d(dim)
        self.squeeze = nn.Conv2d(dim, dim, 1)
        self.output = nn.Conv2d(dim, levels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        x = x + F.softplus(self.grouped(x))
        x = x * torch.sigmoid(self.dilated(x).clamp(-3, 3))
        x = x + self.norm(self.grouped(F.elu(self.squeeze(x), alpha=0.7)))
        return self.output(torch.where(x > 0, x, 0.3 * x))


def masked_stack():
    head = heads.Categorical(5, to_input="unit")
    return built(MaskedStack), (1, 9, 7), head, "raster", "same", None


# ---- 8. MADE ----


class MaskedLinear(nn.Linear):
    def __init__(self, degrees_in: Tensor, degrees_out: Tensor, strict: bool) -> None:
        super().__init__(len(degrees_in), len(degrees_out))
        allowed = degrees_out[:, None] > degrees_in if strict else degrees_out[:, None] >= degrees_in
        self.register_buffer("mask", allowed.float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.mask * self.weight, self.bias)


class Made(nn.Module):
    def __init__(self, degrees: Tensor, hidden: int = 40) -> None:
        super().__init__()
        inner = torch.arange(hidden) % (len(degrees) - 1)
        self.hidden = nn.Sequential(
            MaskedLinear(degrees, inner, False), nn.ReLU(), MaskedLinear(inner, inner, False), nn.ReLU()
        )
        self.output = MaskedLinear(inner, degrees, True)
        self.direct = MaskedLinear(degrees, degrees, True)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.hidden(x)) + self.direct(x)


def made():
    return built(lambda: Made(torch.arange(17))), (17,), heads.Bernoulli(to_input="unit"), "features", "same", None


def made_permuted():
    order = [(7 * i + 3) % 17 for i in range(17)]
    degrees = torch.tensor(order).argsort()
    return built(lambda: Made(degrees)), (17,), heads.Bernoulli(to_input="symmetric"), order, "same", None


# ---- 9. masked convolutions over a small video ----


class VideoNetwork(nn.Module):
    def __init__(self, shape=(3, 4, 5), levels: int = 4, dim: int = 6) -> None:
        super().__init__()
        self.shape = shape
        self.convs = nn.ModuleList(nn.Conv3d(i, o, 3, padding=1) for i, o in ((1, dim), (dim, dim), (dim, levels)))
        centre = torch.arange(27).view(3, 3, 3)
        self.register_buffer("masks", torch.stack([centre < 13, centre <= 13, centre <= 13]).float())

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(x.size(0), 1, *self.shape)
        for i, conv in enumerate(self.convs):
            x = F.conv3d(F.silu(x) if i else x, conv.weight * self.masks[i], conv.bias, padding=1)
        return x.flatten(2)


def video():
    return built(VideoNetwork, 4.0), (60,), heads.Categorical(4, to_input="symmetric"), "features", "same", None


# ---- 10. ByteNet decoder ----


class ByteNetBlock(nn.Module):
    def __init__(self, dim: int, dilation: int, kernel: int = 3) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(d) for d in (2 * dim, dim, dim))
        self.reduce, self.expand = nn.Conv1d(2 * dim, dim, 1), nn.Conv1d(dim, 2 * dim, 1)
        self.conv = nn.Conv1d(dim, dim, kernel, dilation=dilation)
        self.left = (kernel - 1) * dilation

    def forward(self, x: Tensor) -> Tensor:
        h = self.reduce(F.relu(self._norm(0, x)))
        h = self.conv(F.pad(F.relu(self._norm(1, h)), (self.left, 0)))
        return x + self.expand(F.relu(self._norm(2, h)))

    def _norm(self, i: int, x: Tensor) -> Tensor:
        return self.norms[i](x.transpose(1, 2)).transpose(1, 2)


class ByteNet(nn.Module):
    """The input is shifted by one behind a learned start vector."""

    def __init__(self, levels: int = LEVELS, dim: int = 7) -> None:
        super().__init__()
        self.embedding = nn.Embedding(levels, 2 * dim)
        self.start = nn.Parameter(torch.randn(1, 2 * dim, 1))
        self.blocks = nn.Sequential(*(ByteNetBlock(dim, dilation) for dilation in (1, 2, 4)))
        self.output = nn.Conv1d(2 * dim, levels, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens[:, :-1]).transpose(1, 2)
        x = torch.cat([self.start.expand(tokens.size(0), -1, -1), x], dim=2)
        return self.output(F.relu(self.blocks(x)))


def bytenet():
    return built(ByteNet), (30,), heads.Categorical(LEVELS), "time", "same", None


# ---- 11. pixel shuffle ----


class ShuffleNetwork(nn.Module):
    """2 x 2 blocks of the rows above are coarse cells, shuffled back beside fine masked convolutions."""

    def __init__(self, levels: int = 6, dim: int = 8) -> None:
        super().__init__()
        self.coarse = nn.Sequential(nn.Conv2d(4, dim, 3, padding=(0, 1)), nn.Hardswish(), nn.Conv2d(dim, 4 * dim, 1))
        self.fine = MaskedConv("A", 1, dim, 3, padding=1)
        self.norm = nn.LayerNorm(dim)
        self.mix = MaskedConv("B", dim, dim, 3, padding=1)
        self.output = nn.Conv2d(dim, levels, 1)

    def forward(self, x: Tensor) -> Tensor:
        blocks = F.pad(F.pixel_unshuffle(x, 2), (0, 0, 3, -1))
        x = self.fine(x) + F.pixel_shuffle(self.coarse(blocks), 2)
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.output(F.gelu(self.mix(x)) + x)


def pixel_shuffle():
    head = heads.Categorical(6, to_input="unit")
    return built(ShuffleNetwork), (1, 10, 8), head, "raster", "same", None


NETWORKS = {
    make.__name__: make
    for make in (
        pixelcnn_pp_port,
        pixelcnn_pp_port_grey,
        wavenet_one_hot,
        wavenet_batch_folded,
        tokens_last,
        temporal_conv_net,
        causal_unet,
        masked_stack,
        made,
        made_permuted,
        video,
        bytenet,
        pixel_shuffle,
    )
}
