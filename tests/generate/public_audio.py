"""Small recurrent networks of audio that follow the structure of public code; see ``networks``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.generate import heads
from tests.generate.seeded import built

# ---- WaveRNN ----


class WaveRNN(nn.Module):
    """Kalchbrenner et al. 2018, arXiv 1802.08435: coarse and fine halves [N, 2, T] of every sample, one state.

    The coarse half of the state sees the last sample, the fine half sees the coarse value of this one, too: the
    matrix of the inputs is masked.
    """

    def __init__(self, levels: int = 6, width: int = 10) -> None:
        super().__init__()
        half = width // 2
        self.recurrent, self.inputs = nn.Linear(width, 3 * width), nn.Linear(3, 3 * width, bias=False)
        mask = torch.ones(3, 2, half, 3)
        mask[:, 0, :, 2] = 0
        self.register_buffer("mask", mask.reshape(3 * width, 3))
        self.coarse, self.fine = (
            nn.Sequential(nn.Linear(half, half), nn.ReLU(), nn.Linear(half, levels)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        last = F.pad(x, (1, 0))[:, :, :-1]
        inputs = F.linear(torch.cat([last, x[:, :1]], 1).transpose(1, 2), self.inputs.weight * self.mask)
        h, states = x.new_zeros(x.shape[0], inputs.shape[2] // 3), []
        for now in inputs.unbind(1):
            (r, u, e), (rx, ux, ex) = self.recurrent(h).chunk(3, 1), now.chunk(3, 1)
            u = torch.sigmoid(u + ux)
            h = u * h + (1 - u) * torch.tanh(torch.sigmoid(r + rx) * e + ex)
            states.append(h)
        coarse, fine = torch.stack(states, 1).chunk(2, 2)
        return torch.stack([self.coarse(coarse), self.fine(fine)], 1).transpose(2, 3)


def wavernn():
    head = heads.Categorical(6, to_input="symmetric")
    return built(WaveRNN), (2, 14), head, "time-channels", "same", None


class Upsampling(nn.Module):
    """Mel frames [N, C, F] to [N, C, hop * F]: repeated, then smoothed along time."""

    def __init__(self, hop: int) -> None:
        super().__init__()
        self.hop, self.conv = hop, nn.Conv2d(1, 1, (1, 2 * hop + 1), padding=(0, hop), bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        return self.conv(frames.repeat_interleave(self.hop, 2)[:, None])[:, 0]


class ConditionedWaveRNN(nn.Module):
    """One softmax a sample: two GRUs with residuals, conditioned on mel frames; the input is the sample before."""

    def __init__(self, levels: int = 8, width: int = 8, mels: int = 3, hop: int = 8) -> None:
        super().__init__()
        self.upsampling, self.inside = Upsampling(hop), nn.Linear(mels + 1, width)
        self.first, self.second = (nn.GRU(width + k, width, batch_first=True) for k in (0, mels))
        self.out = nn.Sequential(nn.Linear(width + mels, width), nn.ReLU(), nn.Linear(width, levels))

    def forward(self, x: Tensor, mels: Tensor) -> Tensor:
        mels = self.upsampling(mels).transpose(1, 2)
        h = self.inside(torch.cat([x.unsqueeze(-1), mels], 2))
        h = h + self.first(h)[0]
        h = h + self.second(torch.cat([h, mels], 2))[0]
        return self.out(torch.cat([h, mels], 2)).transpose(1, 2)


def wavernn_mels():
    head = heads.Categorical(8, to_input="symmetric")
    return built(ConditionedWaveRNN), (24,), head, "time", "next", None, torch.zeros(1, 3, 3)


# ---- SampleRNN ----


class FrameTier(nn.Module):
    """A recurrent network over frames, which gives a vector to each of the ``ratio`` frames of the tier below."""

    def __init__(self, frame: int, ratio: int, width: int, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.frame, self.inside = frame, nn.Linear(frame, width)
        self.rnn = kind(width, width, batch_first=True)
        self.upsampling = nn.ConvTranspose1d(width, width, ratio, ratio)

    def forward(self, x: Tensor, above: Tensor | None) -> Tensor:
        frames = self.inside(x.reshape(x.shape[0], -1, self.frame))
        frames = frames if above is None else frames + above
        return self.upsampling(self.rnn(frames)[0].transpose(1, 2)).transpose(1, 2)


class SampleRNN(nn.Module):
    """Mehri et al. 2017, arXiv 1612.07837: frames of 4 and of 2 samples, then a perceptron over the last 2 samples.

    The networks over frames read the frames before theirs: the input is shifted by a frame.
    """

    def __init__(self, levels: int = 7, width: int = 8) -> None:
        super().__init__()
        self.levels = levels
        self.slow, self.fast = FrameTier(4, 2, width, nn.GRU), FrameTier(2, 2, width, nn.LSTM)
        self.embed = nn.Embedding(levels, 4)
        self.samples = nn.Conv1d(4, width, 2, bias=False)
        self.out = nn.Sequential(nn.Conv1d(width, width, 1), nn.ReLU(), nn.Conv1d(width, levels, 1))

    def forward(self, x: Tensor) -> Tensor:
        values = 2 * x.float() / (self.levels - 1) - 1
        vectors = self.slow(F.pad(values, (4, 0))[:, :-4], None)
        vectors = self.fast(F.pad(values, (2, 0))[:, :-2], vectors)
        samples = self.samples(F.pad(self.embed(x).transpose(1, 2), (2, -1)))
        return self.out(torch.relu(samples + vectors.transpose(1, 2)))


def samplernn():
    return built(SampleRNN), (24,), heads.Categorical(7), "time", "same", None
