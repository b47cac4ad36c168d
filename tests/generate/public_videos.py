"""Small causal networks over videos that follow the structure of published ones; see ``networks``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen import heads
from tests.generate.seeded import built


class CausalConv3d(nn.Conv3d):
    """A convolution that sees earlier frames, and of its own frame the pixels before, in raster order (and its own)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, sees_itself: bool = True, **options) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, **options)
        place = torch.arange(kernel**3).view(kernel, kernel, kernel)
        self.register_buffer("mask", (place < kernel**3 // 2 + sees_itself).float())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv3d(x, self.weight * self.mask, self.bias, self.stride, self.padding, self.dilation)


class PixelCnn3d(nn.Module):
    """Masked 3-d convolutions with residual connections, and another video as a context."""

    def __init__(self, levels: int = 4, width: int = 6, channels: int = 1) -> None:
        super().__init__()
        self.told = nn.Conv3d(2, width, 3, padding=1)
        self.first = CausalConv3d(channels, width, sees_itself=False)
        self.blocks = nn.ModuleList(CausalConv3d(width, width) for _ in range(2))
        self.last = nn.Conv3d(width, levels * channels, 1)

    def forward(self, x: Tensor, told: Tensor | None = None) -> Tensor:
        h = self.first(x) if told is None else self.first(x) + self.told(told)
        for block in self.blocks:
            h = h + torch.tanh(block(F.silu(h)))
        return self.last(h)


def pixelcnn_3d():
    head = heads.Categorical(4, to_input="symmetric")
    return built(PixelCnn3d), (1, 3, 4, 5), head, "raster", "same", None, torch.zeros(2, 2, 3, 4, 5)


class PaddedStacks(nn.Module):
    """A stack that sees the rows above and earlier frames through padding that is cropped, one that sees the left, and
    one whose frames have a row more than the event's, all of which the next frame reads.
    """

    def __init__(self, levels: int = 3, width: int = 5) -> None:
        super().__init__()
        self.embed = nn.Embedding(levels, width)
        self.above = nn.Conv3d(width, width, (2, 2, 3), padding=(1, 2, 1))
        self.left = nn.Conv3d(width, width, (1, 1, 2), padding=(0, 0, 2))
        self.deep = nn.Conv3d(width, width, (2, 1, 1), padding=(1, 0, 0))
        self.tall, self.back = nn.Conv3d(1, width, (1, 2, 2)), nn.Conv3d(width, width, (1, 2, 1))
        self.last = nn.Linear(width, levels)

    def forward(self, x: Tensor) -> Tensor:
        t, h, w = x.shape[2:]
        tall = torch.tanh(self.tall(F.pad(x.float() - 1, (1, 0, 1, 1))))  # h + 1 rows
        back = F.pad(self.back(tall), (0, 0, 0, 0, 1, 0))[:, :, :t]
        x = self.embed(x[:, 0]).movedim(-1, 1)
        above = torch.tanh(self.above(x)[:, :, :t, : h + 1, :w])[:, :, :, :h]
        left = torch.tanh(self.left(x)[..., :w])
        mixed = F.relu(self.deep(above + left + back)[:, :, :t] + left + F.pad(tall, (1, 0))[:, :, :, :h, :w])
        return self.last(mixed.movedim(1, -1)).movedim(-1, 1)


def video_stacks():
    return built(PaddedStacks), (1, 3, 3, 9), heads.Categorical(3), "raster", "same", None


class VideoPixelNetwork(nn.Module):
    """Kalchbrenner et al. 2016: an encoder of every frame, a convolutional LSTM over the frames, and a masked decoder
    of the next frame that reads its state.
    """

    def __init__(self, levels: int = 3, width: int = 4, channels: int = 1) -> None:
        super().__init__()
        self.width = width
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=2, dilation=2)
        )
        self.lstm = nn.Conv2d(2 * width, 4 * width, 3, padding=1)
        kernel = torch.zeros(3, 3)
        kernel[0], kernel[1, 0] = 1, 1
        own = kernel.clone()
        own[1, 1] = 1
        self.register_buffer("masks", torch.stack([kernel, own]))
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.state = nn.Conv2d(width, width, 1)
        self.last = nn.Conv2d(width, levels * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, t, *size = x.shape
        frames = x.transpose(1, 2).reshape(n * t, c, *size)
        encoded = self.encoder(frames).reshape(n, t, self.width, *size)
        hidden = cell = x.new_zeros(n, self.width, *size)
        states = [hidden]
        for frame in range(t - 1):
            gates = self.lstm(torch.cat([encoded[:, frame], hidden], 1))
            keep, write, read, new = gates.chunk(4, 1)
            cell = torch.sigmoid(keep) * cell + torch.sigmoid(write) * torch.tanh(new)
            hidden = torch.sigmoid(read) * torch.tanh(cell)
            states.append(hidden)
        told = self.state(torch.stack(states, 1).reshape(n * t, self.width, *size))
        h = F.conv2d(frames, self.first.weight * self.masks[0], self.first.bias, padding=1) + told
        h = h + torch.tanh(F.conv2d(F.relu(h), self.second.weight * self.masks[1], self.second.bias, padding=1) + told)
        return self.last(F.relu(h)).reshape(n, t, -1, *size).transpose(1, 2)


def video_pixel_network():
    head = heads.Categorical(3, to_input="symmetric")
    return built(VideoPixelNetwork), (1, 6, 3, 4), head, "raster", "same", None


class Decoder3d(nn.Module):
    """Down and up again, every second frame and pixel, behind a shift by one frame; a masked decoder beside it."""

    def __init__(self, width: int = 4, channels: int = 2) -> None:
        super().__init__()
        self.down = nn.Conv3d(channels, width, (2, 2, 2), stride=2)
        self.up = nn.ConvTranspose3d(width, width, (2, 2, 2), stride=2)
        self.first = CausalConv3d(channels, width, sees_itself=False)
        self.pool = nn.AvgPool3d((1, 3, 3), stride=1, padding=(0, 1, 1))
        self.last = nn.Conv3d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        before = F.pad(x, (0, 0, 0, 0, 2, 0))[:, :, : x.shape[2]]
        coarse = self.pool(F.relu(self.up(torch.tanh(self.down(before)))))
        return self.last(torch.tanh(self.first(x)) + coarse)


def video_strides():
    return built(Decoder3d), (2, 4, 4, 6), heads.Bernoulli(to_input="symmetric"), "raster", "same", None


class FrameTransformer(nn.Module):
    """A decoder over all pixels of all frames, which scores the next pixel."""

    def __init__(self, shape: tuple[int, int, int] = (2, 2, 3), levels: int = 3, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(levels, width)
        frames, height, columns = shape
        self.frame = nn.Parameter(0.3 * torch.randn(1, frames, 1, width))
        self.pixel = nn.Parameter(0.3 * torch.randn(1, 1, height * columns, width))
        self.qkv, self.last = nn.Linear(width, 3 * width), nn.Linear(width, levels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x[:, 0].flatten(2)) + self.frame + self.pixel
        h = h.flatten(1, 2)
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(h).chunk(3, -1))
        h = h + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.last(h).transpose(1, 2).unflatten(-1, x.shape[2:])


def video_transformer():
    return built(FrameTransformer, 1.0), (1, 2, 2, 3), heads.Categorical(3), "raster", "next", None


def video_subpixels():
    class Coloured(PixelCnn3d):
        """Channels of a pixel one after the other: groups of features that see the channels before."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.colour(x[:, :1]) * self.second

        def __init__(self) -> None:
            super().__init__(levels=3, width=4, channels=2)
            self.colour = nn.Conv3d(1, 6, 1)
            self.register_buffer("second", torch.tensor([0.0, 0, 0, 1, 1, 1]).view(6, 1, 1, 1))

    return built(Coloured), (2, 2, 3, 3), heads.Categorical(3, to_input="unit"), "raster-subpixel", "same", None
