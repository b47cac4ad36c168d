"""Small causal networks over images, features and video that follow the structure of public code; see ``networks``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from fastgen.generate import heads
from tests.generate.seeded import built

# ---- PixelCNN++ as PyTorch ports write it ----


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


# ---- grouped, dilated, masked convolutions of an odd size ----


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


# ---- pixel shuffle ----


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


# ---- MADE ----


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


# ---- masked convolutions over a small video ----


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
