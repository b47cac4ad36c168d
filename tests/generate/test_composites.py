"""Operators that PyTorch decomposes, and recurrent layers, whose copies in time are rolled up."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.generate.test_precision_and_masks import Tokens, compiled, is_exact


def one_hot(h: Tensor) -> Tensor:
    return torch.zeros_like(h).scatter_(-1, torch.zeros(*h.shape[:2], 1, dtype=torch.long), 1.0)


def best(h: Tensor) -> Tensor:
    return torch.zeros_like(h).scatter_(-1, h.argmax(-1, keepdim=True), 2.0)


def put(h: Tensor) -> Tensor:
    h = h.clone()
    h[..., torch.tensor([1, 4])] = h[..., torch.tensor([0, 2])] * 2
    return h


def over_time(pool, h: Tensor) -> Tensor:
    return pool(F.pad(h.transpose(1, 2), (3, 0)), 4, 1).transpose(1, 2)


COMPOSITES = {
    "clip": lambda h: h.clip(-0.5, 0.5),
    "diff": lambda h: torch.diff(h, dim=1, prepend=h[:, :1] * 0),
    "tensordot": lambda h: torch.tensordot(h, torch.arange(64.0).reshape(8, 8).sin(), dims=1),
    "take_along_dim": lambda h: torch.take_along_dim(h, torch.arange(8).flip(0)[None, None], -1),
    "cosine_similarity": lambda h: h * F.cosine_similarity(h, torch.ones(8), dim=-1)[..., None],
    "var_mean": lambda h: h - torch.var_mean(h, -1, keepdim=True)[1],
    "deg2rad": torch.deg2rad,
    "min of a dimension": lambda h: h - h.min(-1, keepdim=True)[0],
    "logit": lambda h: torch.logit(torch.sigmoid(h)),
    "empty_like": lambda h: torch.empty_like(h).copy_(h),
    "avg_pool1d": lambda h: over_time(F.avg_pool1d, h),
    "max_pool1d": lambda h: over_time(F.max_pool1d, h),
    "einsum of a row": lambda h: torch.einsum("btc,c->btc", h, torch.arange(8.0)),
    "einsum of two tensors": lambda h: h * torch.einsum("btc,btc->bt", h, h)[..., None],
    "one-hot by scatter": lambda h: h + one_hot(h),
    "argmax": lambda h: h + best(h),
    "index_put": put,
    "cumsum over channels": lambda h: h.cumsum(-1) / 8,
    "prod": lambda h: h * (1 + h / 9).prod(-1, keepdim=True),
    "any and all": lambda h: h * (h > 0).any(-1, keepdim=True) - (h > -1).all(-1, keepdim=True) * 1.0,
}


def test_composites_are_decomposed():
    """Fault generation_16."""

    def inner(s: nn.Module, h: Tensor) -> Tensor:
        return torch.stack([torch.tanh(f(h)) for f in COMPOSITES.values()]).mean(0) * 3

    torch.manual_seed(0)
    assert is_exact(compiled(Tokens(inner), 7))


class Recurrent(Tokens):
    def __init__(self, kind: str) -> None:
        super().__init__(getattr(self, kind.lower()))
        self.layer = getattr(nn, kind)(8, 8, **({} if "Cell" in kind else {"batch_first": True}))

    @staticmethod
    def lstm(s: Recurrent, h: Tensor) -> Tensor:
        return 4 * s.layer(h)[0]

    gru = rnn = lstm

    @staticmethod
    def lstmcell(s: Recurrent, h: Tensor) -> Tensor:
        state, out = (torch.zeros(h.shape[0], 8),) * 2, []
        for t in range(h.shape[1]):
            state = s.layer(h[:, t], state)
            out.append(4 * state[0])
        return torch.stack(out, 1)

    @staticmethod
    def grucell(s: Recurrent, h: Tensor) -> Tensor:
        state, out = torch.zeros(h.shape[0], 8), []
        for t in range(h.shape[1]):
            state = s.layer(h[:, t], state)
            out.append(4 * state)
        return torch.stack(out, 1)


@pytest.mark.parametrize("kind", ["LSTM", pytest.param("GRU", marks=pytest.mark.slow), "RNN", "LSTMCell", "GRUCell"])
def test_recurrent_layers(kind):
    torch.manual_seed(0)
    assert is_exact(compiled(Recurrent(kind), 5))


def test_a_sum_over_time_grows_step_by_step():
    torch.manual_seed(0)
    assert is_exact(compiled(Tokens(lambda s, h: h.cumsum(1)), 6))
