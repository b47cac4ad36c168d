"""A baseline: Gated PixelCNN with row and pixel caches in eager PyTorch, written with care."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.models.autoregressive import GatedPixelCNN
from fastgen.reference.masked_conv2d import colour_of


class _Layer:
    """A layer's weights, ready to use: the masked matrices of every colour, position-major."""

    def __init__(self, layer, colours: int) -> None:
        horizontal, output = (conv.weight.detach() * conv.mask for conv in (layer.horizontal, layer.output))
        channels = output.shape[0]
        self.first, self.last, self.margins = layer.first, layer.last, layer.margins
        self.vertical, self.link, self.horizontal_bias = layer.vertical, layer.link, layer.horizontal.bias.detach()
        self.taps = horizontal.shape[3]
        of_gate, of_output = colour_of(2 * channels, colours, 2), colour_of(channels, colours)
        matrix = horizontal[:, :, 0].permute(0, 2, 1).flatten(1)  # [2p, taps * channels]
        self.colours = []
        for colour in range(colours):
            units, gates = _run(of_output, colour), (of_gate == colour).nonzero()[:, 0]
            ends = output[units, :, 0, 0].contiguous(), layer.output.bias.detach()[units]
            self.colours.append((units, gates, matrix[gates].T.contiguous(), *ends))


def _run(colours: Tensor, colour: int) -> slice:
    """Returns the slice of the channels of a colour, which are neighbours."""
    channels = (colours == colour).nonzero()[:, 0]
    return slice(int(channels[0]), int(channels[-1]) + 1)


def _end(conv, colour: int, colours: int) -> tuple[Tensor, Tensor, slice]:
    """Returns the rows of a masked 1 x 1 convolution that make a colour's channels, their bias, and the channels."""
    units = _run(colour_of(conv.out_channels, colours), colour)
    return (conv.weight.detach() * conv.mask)[units, :, 0, 0].contiguous(), conv.bias.detach()[units], units


class CachedGatedPixelCNN:
    """Draws an image computing every activation once.

    At the start of a row, all layers of the vertical stack for that row at once, by convolutions over the few rows that
    they see; at a sub-pixel, for each layer of the horizontal stack the channels of its colour, one product each.
    """

    def __init__(self, model: GatedPixelCNN, batch: int) -> None:
        config = model.config
        self.colours, self.height, self.width = config.event_shape
        self.batch, self.levels = batch, config.levels
        self.layers = [_Layer(layer, self.colours) for layer in model.layers]
        self.table = model.head.inputs
        self.ends = [
            [_end(conv, colour, self.colours) for conv in (model.hidden, model.output)]
            for colour in range(self.colours)
        ]
        self.hidden_size = config.head_channels

    @torch.no_grad()
    def generate(self, uniforms: Tensor, levels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Draws int64 [N, C, H, W]; and, where levels are given, the logits they were drawn from, [N, C, H, W, L].

        Args:
            uniforms: float32 [C, H, W, N].
            levels: int64 [N, C, H, W], fed instead of the draws.
        """
        n, size = self.batch, (self.colours, self.height, self.width)
        image, drawn = torch.zeros(n, *size), torch.zeros(n, *size, dtype=torch.int64)
        scores = None if levels is None else torch.zeros(n, *size, self.levels)
        above: list[Tensor | None] = [None] * len(self.layers)
        hidden = torch.zeros(n, self.hidden_size)
        for row in range(self.height):
            links = self._row(image, row, above)
            stacks = [
                torch.zeros(n, self.width + layer.taps - 1, self._channels(i)) for i, layer in enumerate(self.layers)
            ]
            last = torch.zeros(n, self._channels(1))
            gated = [torch.zeros(n, self._channels(1)) for _ in self.layers]
            for column in range(self.width):
                noise = uniforms[:, row, column].unbind()
                for colour in range(self.colours):
                    logits = self._subpixel(colour, column, links, stacks, gated, last, hidden)
                    cdf = logits.softmax(-1).cumsum(-1)
                    level = torch.searchsorted(cdf, (noise[colour] * cdf[:, -1])[:, None], right=True)[:, 0]
                    level = level.clamp_max(self.levels - 1)
                    drawn[:, colour, row, column] = level
                    if scores is not None:
                        scores[:, colour, row, column] = logits
                        level = levels[:, colour, row, column]
                    value = self.table[level]
                    image[:, colour, row, column] = value
                    stacks[0][:, column + self.layers[0].taps - 1, colour] = value
        return drawn, scores

    def _channels(self, layer: int) -> int:
        return self.colours if layer == 0 else self.layers[0].colours[-1][0].stop

    def _row(self, image: Tensor, row: int, above: list[Tensor | None]) -> list[list[Tensor]]:
        """Returns what a row of the vertical stack adds to the gates of every layer, [W, N, gates of a colour] each.

        ``above`` holds, for every layer, the rows that it sees.
        """
        links = []
        new = None
        for i, layer in enumerate(self.layers):
            left, right, reach, _ = layer.margins
            if i == 0:
                seen = F.pad(image, (left, right, reach, 0))[:, :, row : row + reach]
            else:
                if above[i] is None:
                    above[i] = torch.zeros(*new.shape[:2], reach + 1, new.shape[3] + left + right)
                seen = above[i] = torch.cat([above[i][:, :, 1:], F.pad(new, (left, right))], 2)
            vertical = layer.vertical(seen)
            link = layer.link(vertical)[:, :, 0].permute(2, 0, 1) + layer.horizontal_bias
            links.append([link[..., gates] for _, gates, *_ in layer.colours])
            signal, gate = vertical.chunk(2, dim=1)
            new = torch.tanh(signal) * torch.sigmoid(gate)
        return links

    def _subpixel(self, colour: int, column: int, links, stacks, gated, last: Tensor, hidden: Tensor) -> Tensor:
        """Returns the logits [N, L] of one colour of one pixel."""
        for i, layer in enumerate(self.layers):
            units, _, matrix, output, bias = layer.colours[colour]
            window = stacks[i][:, column : column + layer.taps].flatten(1)
            signal, gate = torch.addmm(links[i][colour][column], window, matrix).chunk(2, dim=1)
            gated[i][:, units] = torch.tanh(signal) * torch.sigmoid(gate)
            out = F.linear(gated[i], output, bias)
            if i > 0:
                out = out + window[:, -stacks[i].shape[2] :][:, units]
            target = last if i + 1 == len(self.layers) else stacks[i + 1][:, column + self.layers[i + 1].taps - 1]
            target[:, units] = out
        (matrix, bias, units), (output, output_bias, _) = self.ends[colour]
        hidden[:, units] = F.linear(torch.relu(last), matrix, bias)
        return F.linear(torch.relu(hidden), output, output_bias)
