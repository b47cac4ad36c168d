"""A baseline: PixelSNAIL with every activation kept, one pixel at a time in eager PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.models.autoregressive import PixelSNAIL
from fastgen.nn import GatedResnet


class CachedPixelSNAIL:
    """Draws images pixel by pixel, computing every activation once.

    What a convolution reads is kept in an image of its own, with margins of zeros; of every attention the keys and
    values are kept.
    """

    def __init__(self, model: PixelSNAIL, batch: int) -> None:
        self.model, self.batch = model, batch
        self.channels, self.height, self.width = model.config.event_shape
        self.start()

    def start(self) -> None:
        """Forgets all pixels."""
        self.kept: dict[nn.Module, Tensor] = {}
        self.pixel = 0

    @torch.no_grad()
    def advance(self, pixels: int, levels: Tensor | None = None) -> Tensor:
        """Returns the head's parameters [N, n, pixels]; draws, unless levels [N, C, H, W] are given, and goes on.

        After the last pixel of an image the next image begins.
        """
        outputs = []
        for _ in range(pixels):
            if self.pixel == self.height * self.width:
                self.start()
            row, column = divmod(self.pixel, self.width)
            outputs.append(self._step(row, column))
            if levels is None:
                drawn = self._draw(outputs[-1], row, column)
            else:
                drawn = self.model.head.to_input(levels[:, :, row, column])
            self._write(self.model.first_row, drawn, row, column)
            self._keep(row, column, drawn)
            self.pixel += 1
        return torch.stack(outputs, -1)

    def _draw(self, parameters: Tensor, row: int, column: int) -> Tensor:
        noise = torch.rand(2, self.batch, self.model.config.mixtures)
        weights, means, scales = parameters.chunk(3, 1)
        chosen = (weights - torch.log(-torch.log(noise[0]))).argmax(1, keepdim=True)
        mean, scale = means.gather(1, chosen), scales.gather(1, chosen).clamp_min(-7)
        logit = torch.logit(noise[1, :, :1].clamp(1e-5, 1 - 1e-5))
        value = (mean + scale.exp() * logit).clamp(-1, 1)
        steps = self.model.config.levels - 1
        return ((value + 1) * (steps / 2)).round() * (2 / steps) - 1

    # ---- one pixel

    def _step(self, row: int, column: int) -> Tensor:
        model = self.model
        places = torch.tensor([[row / self.height - 0.5, column / self.width - 0.5]]).expand(self.batch, 2)
        self.places, self.before = places, []
        image = self._image()
        h = torch.zeros(self.batch, model.config.filters)
        if row:
            h = h + self._product(model.first_row, image[:, :, row : row + 1, column : column + 3])
        if column:
            h = h + self._product(model.first_pixel, image[:, :, row : row + 2, column : column + 1])
        for block in model.blocks:
            for layer in block.convolutions:
                h = self._gated(layer, h, row, column)
            self.before.append(h)
            h = self._gated(block.mix, h, row, column, self._attend(block.attention, torch.cat([places, h], 1)))
        return F.linear(F.elu(h), model.output.weight[:, :, 0, 0], model.output.bias)

    def _gated(self, layer: GatedResnet, x: Tensor, row: int, column: int, skip: Tensor | None = None) -> Tensor:
        h = self._convolved(layer.conv_input, _concat_elu(x), row, column)
        if skip is not None:
            h = h + F.linear(_concat_elu(skip), layer.skip.weight[:, :, 0, 0], layer.skip.bias)
        a, b = self._convolved(layer.conv_output, _concat_elu(h), row, column).chunk(2, 1)
        return x + a * torch.sigmoid(b)

    def _convolved(self, conv: nn.Conv2d, x: Tensor, row: int, column: int) -> Tensor:
        if conv.kernel_size == (1, 1):
            return F.linear(x, conv.weight[:, :, 0, 0], conv.bias)
        if conv not in self.kept:
            self.kept[conv] = torch.zeros(self.batch, x.shape[1], self.height + 1, self.width + 1)
        kept = self.kept[conv]
        kept[:, :, row + 1, column + 1] = x
        return self._product(conv, kept[:, :, row : row + 2, column : column + 2])

    def _product(self, conv: nn.Conv2d, window: Tensor) -> Tensor:
        return F.linear(window.flatten(1), conv.weight.flatten(1), conv.bias)

    def _attend(self, layer: nn.Module, query: Tensor) -> Tensor:
        if not self.pixel:
            return torch.zeros(self.batch, layer.values)
        kept = self.kept[layer][:, : self.pixel]
        query = F.linear(self._gated(layer.query, query, 0, 0), layer.to_query.weight[:, :, 0, 0], layer.to_query.bias)
        query, keys, values = (
            x.unflatten(2, (layer.attend.heads, -1)).transpose(1, 2)
            for x in (query[:, None], *kept.split([layer.keys, layer.values], 2))
        )
        return F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(1)

    # ---- what is kept of a pixel

    def _image(self) -> Tensor:
        """The image with its channel of ones and margins: one row above, one column on either side."""
        first = self.model.first_row
        if first not in self.kept:
            image = torch.zeros(self.batch, self.channels + 1, self.height + 1, self.width + 2)
            image[:, -1, 1:, 1:-1] = 1
            self.kept[first] = image
        return self.kept[first]

    def _write(self, first: nn.Module, values: Tensor, row: int, column: int) -> None:
        self.kept[first][:, :-1, row + 1, column + 1] = values

    def _keep(self, row: int, column: int, values: Tensor) -> None:
        ones = torch.ones(self.batch, 1)
        for block, h in zip(self.model.blocks, self.before, strict=True):
            layer = block.attention
            source = self._gated(layer.source, torch.cat([values, ones, self.places, h], 1), 0, 0)
            source = F.linear(source, layer.to_source.weight[:, :, 0, 0], layer.to_source.bias)
            if layer not in self.kept:
                self.kept[layer] = torch.zeros(self.batch, self.height * self.width, source.shape[1])
            self.kept[layer][:, self.pixel] = source


def _concat_elu(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], 1))
