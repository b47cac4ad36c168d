"""Causal attention over a sequence, whole or one position at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.ops.arguments import check_integers


class AttentionState(NamedTuple):
    """The state of ``CausalAttention.step``: the keys [N, H, t, D] and values [N, H, t, E] of the positions before."""

    keys: Tensor
    values: Tensor


class CausalAttention(nn.Module):
    """Multi-head attention of every position to those before it, without parameters.

    ``y[t] = sum_{s <= t} softmax_s(q[t] . k[s] / sqrt(D)) v[s]`` in each of H heads; with ``strict`` the sum is over
    s < t: the first position attends to nothing and gives 0. With ``window`` it is over the latest ``window`` positions
    of these.

    Args:
        heads: H.
        strict: whether a position leaves itself out.
        window: most positions that one attends to; None for all.

    Raises:
        ValueError: ``heads`` or ``window`` below 1, or no integer; channels that the heads do not divide.

    References: Vaswani et al., "Attention is all you need", NeurIPS 2017; the strict form is that of Chen, Mishra,
    Rohaninejad, Abbeel, "PixelSNAIL: an improved autoregressive generative model", ICML 2018.

    Example:
        >>> attend = CausalAttention(heads=2, strict=True)
        >>> q, k, v = torch.randn(3, 1, 5, 8).unbind()
        >>> attend(q, k, v).shape, bool((attend(q, k, v)[:, 0] == 0).all())
        (torch.Size([1, 5, 8]), True)
    """

    def __init__(self, heads: int = 1, *, strict: bool = False, window: int | None = None) -> None:
        check_integers(heads=heads)
        if window is not None:
            check_integers(window=window)
        super().__init__()
        self.heads, self.strict, self.window = heads, strict, window

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Query and key [N, T, H D], value [N, T, H E] to [N, T, H E]."""
        q, k, v = (self._split(name, x) for name, x in (("query", query), ("key", key), ("value", value)))
        if not self.strict and self.window is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            latest = -1 if self.strict else 0
            seen = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril(latest)
            seen = seen if self.window is None else seen.triu(latest + 1 - self.window)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)  # 0 where nothing is seen
        return y.transpose(1, 2).flatten(2)

    def initial_state(self, query: Tensor, value: Tensor) -> AttentionState:
        """The state before the first position, of queries [N, H D] and values [N, H E] like these."""
        n = query.shape[0]
        return AttentionState(
            query.new_zeros(n, self.heads, 0, query.shape[-1] // self.heads),
            value.new_zeros(n, self.heads, 0, value.shape[-1] // self.heads),
        )

    def step(self, query: Tensor, key: Tensor, value: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """The output [N, H E] of the next position, whose query and key are [N, H D], value [N, H E]; and the state."""
        q, k, v = (self._split(name, x[:, None]) for name, x in (("query", query), ("key", key), ("value", value)))
        after = AttentionState(torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2))
        seen = state if self.strict else after
        y = F.scaled_dot_product_attention(q, *seen) if seen.keys.shape[2] else torch.zeros_like(v)
        if self.window is not None:
            kept = self.window if self.strict else self.window - 1
            first = max(0, after.keys.shape[2] - kept)
            after = AttentionState(after.keys[:, :, first:], after.values[:, :, first:])
        return y.transpose(1, 2).flatten(1), after

    def _split(self, name: str, x: Tensor) -> Tensor:
        if x.shape[-1] % self.heads:
            raise ValueError(f"{name} must have channels that {self.heads} heads divide, got {x.shape[-1]}")
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, strict={self.strict}, window={self.window}"
