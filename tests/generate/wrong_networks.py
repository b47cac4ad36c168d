"""Networks that a sampler must refuse.

``WRONG[name]()`` gives ``(module, event_shape, head, order, word)``; the message of the refusal contains the word.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.generate import heads

LEVELS = 5


class Wrong(nn.Module):
    """A causal convolution whose hidden activations pass through ``spoil``."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, dim, 3)
        self.output = nn.Conv1d(dim, LEVELS, 1)

    def spoil(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(F.pad(x[:, None], (3, -1)))
        return self.output(torch.tanh(self.spoil(h)))


class CentredConvolution(Wrong):
    def spoil(self, h: Tensor) -> Tensor:
        return F.conv1d(h, torch.ones(h.size(1), 1, 5) / 5, padding=2, groups=h.size(1))


class SeesItself(Wrong):
    def forward(self, x: Tensor) -> Tensor:
        return self.output(torch.tanh(self.conv(F.pad(x[:, None], (2, 0)))))


class CentresOverTime(Wrong):
    def spoil(self, h: Tensor) -> Tensor:
        return h - h.mean(-1, keepdim=True)


class MixesBatch(Wrong):
    def spoil(self, h: Tensor) -> Tensor:
        return h + h.mean(0)


class BatchNormTraining(Wrong):
    def spoil(self, h: Tensor) -> Tensor:
        return F.batch_norm(h, None, None, training=True)


class FiniteMask(Wrong):
    """Attention that hides the future with a large finite number instead of -inf."""

    def spoil(self, h: Tensor) -> Tensor:
        steps = torch.arange(h.size(-1))
        scores = (h.transpose(1, 2) @ h).masked_fill(steps[None] > steps[:, None], -1e4)
        return h @ scores.softmax(-1).transpose(1, 2)


class Special(Wrong):
    def spoil(self, h: Tensor) -> Tensor:
        return torch.lgamma(h)


class Fourier(Wrong):
    def spoil(self, h: Tensor) -> Tensor:
        return torch.fft.rfft(h, dim=1, n=2 * h.size(1) - 2).abs()


class NotANumber(Wrong):
    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.conv.weight[0, 0, 0] = float("nan")


def _sequence(make: type[nn.Module], word: str):
    return lambda: (make().eval(), (16,), heads.Categorical(LEVELS, to_input="unit"), "time", word)


WRONG = {
    "centred_convolution": _sequence(CentredConvolution, "causal"),
    "sees_itself": _sequence(SeesItself, "causal"),
    "centres_over_time": _sequence(CentresOverTime, "causal"),
    "mixes_batch": _sequence(MixesBatch, "batch"),
    "batch_norm_training": _sequence(BatchNormTraining, "batch"),
    "finite_mask": _sequence(FiniteMask, "finite"),
    "special": _sequence(Special, "lgamma"),
    "fourier": _sequence(Fourier, "fft"),
    "not_a_number": _sequence(NotANumber, "NaN"),
}
