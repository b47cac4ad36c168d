"""Small recurrent networks that follow the structure of public code; see ``networks``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.generate import heads
from tests.generate.public_images import MaskedConv
from tests.generate.seeded import built

LEVELS = 9


class Tokens(nn.Module):
    """Integer tokens [N, T], a network from [N, T, C] to [N, T, C], scores [N, V, T]."""

    def __init__(self, network: nn.Module, channels: int = 8, levels: int = LEVELS) -> None:
        super().__init__()
        self.embed, self.network, self.out = nn.Embedding(levels, channels), network, nn.Linear(channels, levels)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.network(self.embed(x))).transpose(1, 2)


def _tokens(make, length: int = 20, gain: float = 1.8):
    return built(lambda: Tokens(make()), gain), (length,), heads.Categorical(LEVELS), "time", "next", None


# ---- layers of PyTorch ----


class CharLSTM(nn.Module):
    """char-rnn: two layers, here projected."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 10, 2, batch_first=True, dropout=0.2, proj_size=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class SequenceFirstGRU(nn.Module):
    """The layout [T, N, C], an initial state that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.state = nn.GRU(8, 8, 2), nn.Parameter(torch.randn(2, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(x.transpose(0, 1), self.state.expand(-1, x.shape[0], -1).contiguous())
        return y.transpose(0, 1)


class ReluRNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.norm = nn.RNN(8, 8, nonlinearity="relu", batch_first=True, bias=False), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.rnn(x)[0])


class GivenStates(nn.Module):
    """Two layers in the layout [T, N, C], whose first states ``h0`` and ``c0`` [N, 2 * 6] are given."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.out = nn.Embedding(LEVELS, 6), nn.LSTM(6, 6, 2), nn.Linear(6, LEVELS)

    def forward(self, x: Tensor, states: dict[str, Tensor]) -> Tensor:
        first = [states[name].unflatten(1, (2, 6)).transpose(0, 1).contiguous() for name in ("h0", "c0")]
        return self.out(self.lstm(self.embed(x).transpose(0, 1), first)[0]).permute(1, 2, 0)


def lstm_given_states():
    states = {name: torch.zeros(1, 12) for name in ("h0", "c0")}
    return built(GivenStates), (20,), heads.Categorical(LEVELS), "time", "next", None, states


def char_lstm():
    return _tokens(CharLSTM)


def gru_sequence_first():
    return _tokens(SequenceFirstGRU)


def relu_rnn():
    return _tokens(ReluRNN, gain=1.2)


# ---- cells in a loop ----


class Cells(nn.Module):
    """A stack of cells, all of them at every step."""

    def __init__(self, kinds: list[type[nn.RNNCellBase]]) -> None:
        super().__init__()
        self.cells = nn.ModuleList(kind(8, 8) for kind in kinds)

    def forward(self, x: Tensor) -> Tensor:
        zeros = x.new_zeros(x.shape[0], 8)
        states = [(zeros, zeros) if isinstance(cell, nn.LSTMCell) else zeros for cell in self.cells]
        outputs = []
        for t in range(x.shape[1]):
            h = x[:, t]
            for number, cell in enumerate(self.cells):
                states[number] = cell(h, states[number])
                h = h + (states[number][0] if isinstance(cell, nn.LSTMCell) else states[number])
            outputs.append(h)
        return torch.stack(outputs, 1)


class OwnCell(nn.Module):
    """A gate written by hand, a learned initial state, and a start token in the place of a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.new, self.start = nn.Linear(16, 8), nn.Linear(16, 8), nn.Parameter(torch.randn(8))
        self.embed, self.out = nn.Embedding(LEVELS, 8), nn.Linear(8, LEVELS)

    def forward(self, x: Tensor) -> Tensor:
        inputs = self.embed(F.pad(x, (1, 0))[:, :-1])
        h, outputs = self.start.expand(x.shape[0], -1), []
        for t in range(x.shape[1]):
            both = torch.cat([inputs[:, t], h], 1)
            z = torch.sigmoid(self.gate(both))
            h = (1 - z) * h + z * torch.tanh(self.new(both))
            outputs.append(self.out(h))
        return torch.stack(outputs, 2)


class ZeroState(nn.Module):
    """[T, N, C] with a state that begins at zero: the first cells are computed of constants alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.out = nn.Embedding(LEVELS, 8), nn.Linear(16, 8), nn.Linear(8, LEVELS)

    def forward(self, x: Tensor) -> Tensor:
        inputs = self.embed(F.pad(x, (1, 0))[:, :-1]).transpose(0, 1)
        state, states = torch.zeros(x.shape[0], 8), []
        for now in inputs:
            state = torch.tanh(self.cell(torch.cat([now, state], 1)))
            states.append(state)
        return self.out(torch.stack(states)).permute(1, 2, 0)


def cells():
    return _tokens(lambda: Cells([nn.LSTMCell, nn.GRUCell, nn.RNNCell]), 16)


def own_cell():
    return built(OwnCell), (16,), heads.Categorical(LEVELS), "time", "same", None


def sequence_first_loop():
    return built(ZeroState), (16,), heads.Categorical(LEVELS), "time", "same", None


# ---- averages, linear attention, retention ----


class Averages(nn.Module):
    """An exponential moving average in a loop, a running mean and a running maximum by cumulative operators."""

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.mix = nn.Parameter(torch.randn(8)), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        rate, average, averages = torch.sigmoid(self.rate), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            average = rate * average + (1 - rate) * x[:, t]
            averages.append(average)
        mean = x.cumsum(1) / (1 + torch.arange(x.shape[1]))[:, None]
        return self.mix(torch.cat([torch.stack(averages, 1), mean, x.cummax(1).values], 2))


class CumulativeNorm(nn.Module):
    """Cumulative layer normalisation of Conv-TasNet (Luo and Mesgarani 2019, arXiv 1809.07454), by sums over time.

    Then a moving mean and variance, by which the input is normalised.
    """

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.rand(1, channels, 1) + 0.5), nn.Parameter(torch.randn(1, channels, 1))
        self.conv, self.rate = nn.Conv1d(channels, channels, 3), nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.pad(x.transpose(1, 2), (2, 0)))
        channels, length = y.shape[1:]
        total, power = y.sum(1).cumsum(1), y.square().sum(1).cumsum(1)
        count = channels * torch.arange(1, length + 1)
        mean = total / count
        variance = (power - 2 * mean * total) / count + mean.square()
        y = self.gain * (y - mean.unsqueeze(1)) / (variance + 1e-2).sqrt().unsqueeze(1) + self.bias
        rate, mean, outputs = torch.sigmoid(self.rate), torch.zeros_like(x[:, 0]), []
        variance = mean + 1
        for now in y.unbind(2):
            mean = rate * mean + (1 - rate) * now
            variance = rate * variance + (1 - rate) * (now - mean).square()
            outputs.append((now - mean) * torch.rsqrt(variance + 1e-2))
        return torch.stack(outputs, 1)


class LinearAttention(nn.Module):
    """Katharopoulos et al. 2020, arXiv 2006.16236, by sums over the past."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.projections, self.out = heads, nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projections(x).unflatten(2, (3, self.heads, -1)).unbind(2)  # [N, T, heads, D]
        q, k = F.elu(q) + 1, F.elu(k) + 1
        sums = (k.unsqueeze(4) * v.unsqueeze(3)).cumsum(1)
        scale = (q * k.cumsum(1)).sum(3, keepdim=True)
        return x + self.out(((q.unsqueeze(4) * sums).sum(3) / scale).flatten(2))


class Retention(nn.Module):
    """Sun et al. 2023, arXiv 2307.08621, in its recurrent form."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.projections, self.out, self.width = nn.Linear(8, 3 * width), nn.Linear(width, 8), width

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projections(x).chunk(3, 2)
        state, outputs = x.new_zeros(x.shape[0], self.width, self.width), []
        for t in range(x.shape[1]):
            state = 0.9 * state + k[:, t, :, None] * v[:, t, None, :]
            outputs.append((q[:, t, :, None] * state).sum(1))
        return x + self.out(torch.stack(outputs, 1))


def averages():
    return _tokens(Averages)


def cumulative_norm():
    return _tokens(CumulativeNorm, 16)


def linear_attention():
    return _tokens(LinearAttention)


def retention():
    return _tokens(Retention, gain=1.0)


# ---- RWKV, Mamba ----


class RWKV(nn.Module):
    """Time mixing of RWKV-4 (Peng et al. 2023, arXiv 2305.13048), with its running maximum, and channel mixing."""

    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.decay, self.first = nn.Parameter(torch.randn(c)), nn.Parameter(torch.randn(c))
        self.mix = nn.Parameter(torch.rand(4, c))
        self.k, self.v, self.r, self.out = (nn.Linear(c, c, bias=False) for _ in range(4))
        self.up, self.down, self.norm = nn.Linear(c, c), nn.Linear(c, c), nn.LayerNorm(c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        last = F.pad(y, (0, 0, 1, -1))
        k, v, r = (
            layer(y * m + last * (1 - m)) for layer, m in zip((self.k, self.v, self.r), self.mix[:3], strict=True)
        )
        above, below, peak = torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0]), torch.full_like(k[:, 0], -1e30)
        outputs = []
        for t in range(x.shape[1]):
            here = torch.maximum(peak, self.first + k[:, t])
            a, b = torch.exp(peak - here), torch.exp(self.first + k[:, t] - here)
            outputs.append((a * above + b * v[:, t]) / (a * below + b))
            decayed = peak - torch.exp(self.decay)
            here = torch.maximum(decayed, k[:, t])
            a, b = torch.exp(decayed - here), torch.exp(k[:, t] - here)
            above, below, peak = a * above + b * v[:, t], a * below + b, here
        x = x + self.out(torch.sigmoid(r) * torch.stack(outputs, 1))
        return x + self.down(torch.square(torch.relu(self.up(x))))


class Mamba(nn.Module):
    """A selective state space (Gu and Dao 2023, arXiv 2312.00752): a short convolution, then a scan in a loop."""

    def __init__(self, c: int = 8, states: int = 3) -> None:
        super().__init__()
        self.inside, self.conv = nn.Linear(c, 2 * c), nn.Conv1d(c, c, 3, groups=c, padding=2)
        self.select, self.step = nn.Linear(c, 2 * states), nn.Linear(c, c)
        self.log_a, self.d, self.out = nn.Parameter(torch.rand(c, states)), nn.Parameter(torch.ones(c)), nn.Linear(c, c)

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.inside(x).chunk(2, 2)
        u = F.silu(self.conv(u.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        b, c = self.select(u).chunk(2, 2)
        delta, a = F.softplus(self.step(u)), -torch.exp(self.log_a)
        state, outputs = x.new_zeros(x.shape[0], *a.shape), []
        for t in range(x.shape[1]):
            kept = torch.exp(delta[:, t, :, None] * a)
            state = kept * state + (delta[:, t] * u[:, t])[:, :, None] * b[:, t, None, :]
            outputs.append((state * c[:, t, None, :]).sum(2) + self.d * u[:, t])
        return x + self.out(torch.stack(outputs, 1) * F.silu(gate))


def rwkv():
    return _tokens(RWKV, 16)


def mamba():
    return _tokens(Mamba, 16)


# ---- images ----


class RowLSTM(nn.Module):
    """Row LSTM of van den Oord et al. 2016, arXiv 1601.06759: a state for every row, convolved along it."""

    def __init__(self, channels: int = 6, levels: int = 5) -> None:
        super().__init__()
        self.first = MaskedConv("A", 1, channels, 5, padding=2)
        self.along = MaskedConv("B", channels, 4 * channels, (1, 3), padding=(0, 1))
        self.above, self.out = nn.Conv1d(channels, 4 * channels, 3, padding=1), nn.Conv2d(channels, levels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        gates, h, rows = self.along(x), torch.zeros_like(x[:, :, 0]), []
        c = h
        for r in range(x.shape[2]):
            o, f, i, g = (gates[:, :, r] + self.above(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            rows.append(h)
        return self.out(x + torch.stack(rows, 2))


def row_lstm():
    return built(RowLSTM), (1, 7, 6), heads.Categorical(5, to_input="symmetric"), "raster", "same", None
