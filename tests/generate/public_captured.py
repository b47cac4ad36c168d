"""Small networks that call ``flex_attention`` and scans with functions of their own; see ``networks``."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.map import map as mapped
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from fastgen.generate import heads
from tests.generate.public_attention import HEADS, LEVELS, Decoder, SelfAttention, joined
from tests.generate.seeded import built

WIDTH = 8

# ---- FlexAttention


def _causal(b, h, query, key):
    return query >= key


def _masked(x: Tensor, seen: Callable, count: int | None = None):
    return create_block_mask(seen, None, count, x.shape[1], x.shape[1], device="cpu")


def causal_flex(s: SelfAttention, x: Tensor) -> Tensor:
    q, k, v = s.heads(x)
    return joined(flex_attention(q, k, v, block_mask=_masked(x, _causal), enable_gqa=s.keys < HEADS))


def capped_flex(s: SelfAttention, x: Tensor) -> Tensor:
    """A soft cap, a learned bias by distance and a mask, all as what becomes of a score."""

    def score(score, b, h, query, key):
        score = 5 * torch.tanh(score / 5) + s.bias.weight[(query - key).clamp(0, 7), h]
        return torch.where(query >= key, score, -float("inf"))

    return joined(flex_attention(*s.heads(x), score_mod=score, scale=0.3))


def windowed_flex(s: SelfAttention, x: Tensor) -> Tensor:
    """ALiBi over a window."""
    slopes = 2.0 ** -torch.arange(1, HEADS + 1)
    return joined(
        flex_attention(
            *s.heads(x),
            score_mod=lambda score, b, h, query, key: score - slopes[h] * (query - key),
            block_mask=_masked(x, lambda b, h, query, key: (query >= key) & (query - key < 5)),
        )
    )


def document_flex(s: SelfAttention, x: Tensor) -> Tensor:
    """Positions see those of their own document, and the first of all."""
    document = torch.arange(x.shape[1]) // 5

    def seen(b, h, query, key):
        return (query >= key) & ((document[query] == document[key]) | (key < 2))

    return joined(flex_attention(*s.heads(x), block_mask=_masked(x, seen)))


def strict_flex(s: SelfAttention, x: Tensor) -> Tensor:
    """A window of another length for every head, before the position; the first one sees nothing and gives 0."""
    seen = _masked(x, lambda b, h, query, key: (query > key) & (query - key <= h + 1), HEADS)
    return joined(flex_attention(*s.heads(x), block_mask=seen))


FLEX = {way.__name__: way for way in (causal_flex, capped_flex, windowed_flex, document_flex, strict_flex)}


def flex_decoder():
    return built(lambda: Decoder(capped_flex, layers=1)), (14,), heads.Categorical(LEVELS), "time", "next", None


# ---- scans


class Scanned(nn.Module):
    """Tokens, three linear layers that ``mix(self, h)`` combines over positions, logits."""

    def __init__(self, mix: Callable[[Scanned, Tensor], Tensor]) -> None:
        super().__init__()
        self.mix, self.embed, self.out = mix, nn.Embedding(LEVELS, WIDTH), nn.Linear(WIDTH, LEVELS)
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.rate, self.weight = nn.Parameter(torch.rand(WIDTH)), nn.Parameter(0.3 * torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mix(self, self.embed(x))).transpose(1, 2)


def _recurrence(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Combines ``h -> a h + b`` with another such function that follows."""
    return left[0] * right[0], left[1] * right[0] + right[1]


def _in_pairs(kept: Tensor, added: Tensor) -> Tensor:
    return associative_scan(_recurrence, (kept, added), dim=1, combine_mode="generic")[1]


def state_space(s: Scanned, h: Tensor) -> Tensor:
    """What is kept depends on the input, as in Mamba."""
    kept = torch.exp(-F.softplus(s.a(h)) * torch.exp(s.rate))
    return _in_pairs(kept, s.b(h)) * torch.sigmoid(s.c(h))


def linear_recurrent_unit(s: Scanned, h: Tensor) -> Tensor:
    kept = torch.exp(-torch.exp(s.rate))
    return _in_pairs(kept.expand_as(h), s.b(h) * (1 - kept**2).sqrt())


def moving_average(s: Scanned, h: Tensor) -> Tensor:
    def step(average, x):
        average = 0.9 * average + 0.1 * x
        return average, average * torch.exp(s.rate)

    return scan(step, torch.zeros_like(h[:, 0]), s.b(h), dim=1)[1]


def two_states(s: Scanned, h: Tensor) -> Tensor:
    """States and inputs in dictionaries and tuples, two outputs, and the last state, which nothing reads."""

    def step(state, x):
        fast = torch.tanh(state["fast"] @ s.weight + x[0])
        slow = state["slow"] * torch.sigmoid(x[1]) + fast
        return {"fast": fast, "slow": slow}, (fast * 2, slow.clone())

    start = {"fast": torch.zeros_like(h[:, 0]), "slow": torch.ones_like(h[:, 0])}
    fast, slow = scan(step, start, (s.a(h), s.b(h)), dim=1)[1]
    return fast + slow


def each_position(s: Scanned, h: Tensor) -> Tensor:
    """The same layer at every position, and again a fixed number of times."""
    h = mapped(lambda x: torch.tanh(s.a(x)), h.transpose(0, 1)).transpose(0, 1).contiguous()
    return while_loop(lambda i, h: i < 3, lambda i, h: (i + 1, torch.tanh(s.b(h))), (torch.tensor(0), h))[1]


def _log_scan(log_kept: Tensor, log_added: Tensor) -> Tensor:
    """``h[t] = kept[t] h[t - 1] + added[t]`` of logarithms, by Heinsen 2023, arXiv 2311.06281."""
    total = F.pad(torch.cumsum(log_kept, 1), (0, 0, 1, 0))
    return torch.exp(total + torch.logcumsumexp(log_added - total, 1))[:, 1:]


def _log_positive(x: Tensor) -> Tensor:
    return torch.where(x >= 0, (F.relu(x) + 0.5).log(), -F.softplus(-x))


def min_gru(s: Scanned, h: Tensor) -> Tensor:
    """Feng et al. 2024, arXiv 2410.01201, in the log space."""
    gate = s.a(h)
    first = _log_positive(h.new_zeros(h.shape[0], 1, WIDTH))
    return _log_scan(-F.softplus(gate), torch.cat([first, -F.softplus(-gate) + _log_positive(s.b(h))], 1))


def min_lstm(s: Scanned, h: Tensor) -> Tensor:
    difference = F.softplus(-s.a(h)) - F.softplus(-s.c(h))
    first = _log_positive(h.new_zeros(h.shape[0], 1, WIDTH))
    return _log_scan(-F.softplus(difference), torch.cat([first, -F.softplus(-difference) + _log_positive(s.b(h))], 1))


SCANS = {way.__name__: way for way in (
    state_space, linear_recurrent_unit, moving_average, two_states, each_position, min_gru, min_lstm,
)}  # fmt: skip


def associative_state_space():
    return built(lambda: Scanned(state_space)), (13,), heads.Categorical(LEVELS), "time", "next", None
