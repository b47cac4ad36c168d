"""Small recurrent networks of images that follow the structure of public code; see ``networks``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.generate import heads
from tests.generate.public_images import MaskedConv
from tests.generate.seeded import built

# ---- convolutional LSTM ----


class ConvLSTMCell(nn.Module):
    """Shi et al. 2015, arXiv 1506.04214: gates of a convolution of input and state, with peepholes."""

    def __init__(self, channels: int, hidden: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels + hidden, 4 * hidden, kernel, padding=kernel // 2)
        self.peepholes = nn.Parameter(torch.randn(3, hidden, 1))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = self.conv(torch.cat([x, h], 1)).chunk(4, 1)
        i, f = torch.sigmoid(i + self.peepholes[0] * c), torch.sigmoid(f + self.peepholes[1] * c)
        c = f * c + i * torch.tanh(g)
        return torch.sigmoid(o + self.peepholes[2] * c) * torch.tanh(c), c


class RowsConvLSTM(nn.Module):
    """A convolutional LSTM from row to row, over the rows above, and masked convolutions within the row."""

    def __init__(self, channels: int = 5, levels: int = 5) -> None:
        super().__init__()
        self.lift, self.cell = nn.Conv2d(1, channels, 1), ConvLSTMCell(channels, channels)
        self.within = MaskedConv("A", 1, channels, (1, 5), padding=(0, 2))
        self.out = nn.Conv2d(2 * channels, levels, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.lift(F.pad(x, (0, 0, 1, -1)))
        state, states = (torch.zeros_like(rows[:, :, 0]),) * 2, []
        for row in rows.unbind(2):
            state = self.cell(row, state)
            states.append(state[0])
        return self.out(torch.relu(torch.cat([torch.stack(states, 2), self.within(x)], 1)))


def conv_lstm():
    return built(RowsConvLSTM), (1, 6, 5), heads.Categorical(5, to_input="symmetric"), "raster", "same", None


class NotesConvLSTM(nn.Module):
    """A piano roll [N, pitches, T]: the convolutions of a convolutional LSTM run along the pitches."""

    def __init__(self, hidden: int = 3) -> None:
        super().__init__()
        self.cell, self.out, self.hidden = ConvLSTMCell(1, hidden), nn.Conv1d(hidden, 1, 1), hidden

    def forward(self, x: Tensor) -> Tensor:
        state, scores = (x.new_zeros(x.shape[0], self.hidden, x.shape[1]),) * 2, []
        for now in x.unbind(2):
            state = self.cell(now[:, None], state)
            scores.append(self.out(state[0])[:, 0])
        return torch.stack(scores, 2)


def conv_lstm_pitches():
    return built(NotesConvLSTM), (4, 12), heads.Bernoulli(to_input="float"), "time", "next", None


# ---- Diagonal BiLSTM ----


def skew(x: Tensor) -> Tensor:
    """Moves row r of [N, C, H, W] to the right by r: [N, C, H, W + H - 1]."""
    n, c, h, w = x.shape
    return F.pad(x, (0, h)).reshape(n, c, -1)[:, :, : h * (w + h - 1)].reshape(n, c, h, w + h - 1)


def unskew(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return F.pad(x.reshape(n, c, -1), (0, h)).reshape(n, c, h, w + 1)[..., : w - h + 1]


class DiagonalLSTM(nn.Module):
    """An LSTM from diagonal to diagonal, whose state is convolved by a kernel of two rows."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.inputs, self.states = nn.Conv2d(channels, 4 * hidden, 1), nn.Conv1d(hidden, 4 * hidden, 2)
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        gates = skew(self.inputs(x))
        h = c = x.new_zeros(x.shape[0], self.hidden, x.shape[2])
        outputs = []
        for column in range(gates.shape[3]):
            o, f, i, g = (gates[..., column] + self.states(F.pad(h, (1, 0)))).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return unskew(torch.stack(outputs, 3))


class DiagonalNetwork(nn.Module):
    """van den Oord et al. 2016, arXiv 1601.06759: the half that runs from the right sees the rows above only."""

    def __init__(self, both: bool, channels: int = 4, levels: int = 5) -> None:
        super().__init__()
        self.first, self.left = MaskedConv("A", 1, channels, 3, padding=1), DiagonalLSTM(channels, channels)
        self.right = DiagonalLSTM(channels, channels) if both else None
        self.out = nn.Conv2d(channels, levels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        states = self.left(x)
        if self.right is not None:
            states = states + F.pad(self.right(x.flip(3)).flip(3), (0, 0, 1, -1))
        return self.out(x + states)


def diagonal_lstm():
    head = heads.Categorical(5, to_input="symmetric")
    return built(lambda: DiagonalNetwork(both=False)), (1, 5, 6), head, "raster", "same", None


# ---- an LSTM along every row ----


class ColumnsGRU(nn.Module):
    """A cell in a loop over the columns, for all rows at once, which lie in the batch."""

    def __init__(self, channels: int = 4, levels: int = 5) -> None:
        super().__init__()
        self.first, self.cell = MaskedConv("A", 1, channels, 3, padding=1), nn.GRUCell(channels, channels)
        self.out = nn.Conv2d(channels, levels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        n, c, h, w = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(n * h, w, c)
        state, states = x.new_zeros(n * h, c), []
        for column in rows.unbind(1):
            state = self.cell(column, state)
            states.append(state)
        return self.out(x + torch.stack(states, 1).reshape(n, h, w, c).permute(0, 3, 1, 2))


def columns_gru():
    head = heads.Categorical(5, to_input="symmetric")
    return built(ColumnsGRU), (1, 6, 5), head, "raster", "same", None
