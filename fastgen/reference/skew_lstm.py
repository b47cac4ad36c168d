"""The recurrence of the Row LSTM and of the Diagonal BiLSTM, in plain PyTorch.

van den Oord, Kalchbrenner, Kavukcuoglu, "Pixel recurrent neural networks" (2016), section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def skew_lstm(gates: Tensor, weight: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor]:
    """``(h of all steps, c of the last)``. Step r, with * the convolution of k taps along the positions::

        i, f, o, g = sigmoid, sigmoid, sigmoid, tanh of the quarters of  gates[:, :, r] + weight * h
        c = f c + i g
        h = o tanh(c)

    The taps of position l are l - k // 2, ..., l - k // 2 + k - 1; h is zero beyond the ends.

    Args:
        gates: [N, 4 H, R, L], R at least 1: the input's part, bias included.
        weight: [4 H, H, k].
        h0, c0: [N, H, L].
    """
    taps, positions = weight.shape[2], gates.shape[3]
    h, c, rows = h0, c0, []
    with torch.autocast(gates.device.type, enabled=False):
        for step in gates.unbind(2):
            padded = F.pad(h, (taps // 2, taps - 1 - taps // 2))
            for tap in range(taps):
                step = step + torch.einsum("oh,nhl->nol", weight[:, :, tap], padded[:, :, tap : tap + positions])
            i, f, o, g = step.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            rows.append(h)
    return torch.stack(rows, 2), c


def _case(n: int, hidden: int, steps: int, positions: int, taps: int, *, state: bool = False, size: float = 1.0):
    def make(generator: torch.Generator) -> dict:
        given = {
            "gates": size * torch.randn(n, 4 * hidden, steps, positions, generator=generator),
            "weight": torch.randn(4 * hidden, hidden, taps, generator=generator) / (hidden * taps) ** 0.5,
        }
        if state:
            given["h0"] = torch.randn(n, hidden, positions, generator=generator).tanh()
            given["c0"] = torch.randn(n, hidden, positions, generator=generator)
        return given

    return make


CASES = {
    "small": _case(2, 1, 2, 3, 2),
    "small, three taps, with a state": _case(1, 2, 2, 2, 3, state=True),
    "none": _case(0, 3, 2, 5, 3),
    "no positions": _case(2, 3, 2, 0, 2, state=True),
    "one": _case(1, 1, 1, 1, 1),
    "one position": _case(3, 5, 4, 1, 3, state=True),
    "row": _case(3, 8, 7, 9, 3),
    "diagonal": _case(2, 7, 13, 7, 2, state=True),
    "prime": _case(2, 13, 5, 17, 5),
    "many vectors": _case(1, 4, 3, 67, 3),
    "more taps than positions": _case(2, 3, 3, 2, 7, state=True),
    "more samples than a group": _case(37, 3, 2, 3, 2),
    "large": _case(2, 6, 5, 33, 3, state=True, size=20.0),
}
