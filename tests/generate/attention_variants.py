"""Ways to attend that papers and public code add to the usual one: those that compile, and those that are refused."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.generate.public_attention import DEPTH, HEADS, SelfAttention, between, joined, split


def causal(scores: Tensor) -> Tensor:
    return scores.masked_fill(between(scores.shape[-1]) < 0, float("-inf"))


def scored(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-2, -1) * DEPTH**-0.5


# ---- sinks


def _with_sink(s: SelfAttention, scores: Tensor, first: bool = False) -> Tensor:
    sink = s.bias.weight[0].reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.cat([sink, scores] if first else [scores, sink], -1)


def sink(s: SelfAttention, x: Tensor) -> Tensor:
    """A learned score beside the others, whose weight is left out, as in gpt-oss."""
    q, k, v = s.heads(x)
    together = _with_sink(s, causal(scored(q, k)))
    weights = F.softmax(together - together.max(dim=-1, keepdim=True).values, dim=-1)
    return joined(weights[..., :-1] @ v)


def sink_first(s: SelfAttention, x: Tensor) -> Tensor:
    """Of scores with a bias by distance, a soft cap and a temperature for every head."""
    q, k, v = s.heads(x)
    bias = s.bias(between(x.shape[1]).clamp(0, 7)).permute(2, 0, 1)
    scores = 3 * torch.tanh(scored(q, k) / 3) * s.bias.weight[1].exp()[:, None, None] + bias
    return joined(_with_sink(s, causal(scores), first=True).softmax(-1)[..., 1:] @ v)


def softmax_one(s: SelfAttention, x: Tensor) -> Tensor:
    """``exp(x) / (1 + sum exp(x))``."""
    q, k, v = s.heads(x)
    powers = torch.exp(causal(scored(q, k)))
    return joined(powers / (1 + powers.sum(-1, keepdim=True)) @ v)


def softmax_one_padded(s: SelfAttention, x: Tensor) -> Tensor:
    q, k, v = s.heads(x)
    return joined(F.pad(causal(scored(q, k) + 0.5), (1, 0)).softmax(-1)[..., 1:] @ v)


# ---- weights


def softmax_by_hand(s: SelfAttention, x: Tensor) -> Tensor:
    q, k, v = s.heads(x)
    scores = causal(30 * scored(q, k))
    powers = torch.exp(scores - scores.amax(-1, keepdim=True))
    return joined(powers / powers.sum(-1, keepdim=True) @ v)


def sigmoids(s: SelfAttention, x: Tensor) -> Tensor:
    q, k, v = s.heads(x)
    return joined(torch.sigmoid(causal(scored(q, k) - 2.0)) @ v)


def rectified(s: SelfAttention, x: Tensor) -> Tensor:
    q, k, v = s.heads(x)
    return joined((F.relu(scored(q, k)).tril() / x.shape[1]) @ v)


def linear(s: SelfAttention, x: Tensor) -> Tensor:
    q, k, v = s.heads(x)
    weights = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).tril()
    return joined(weights @ v / (weights.sum(-1, keepdim=True) + 1e-6))


def differential(s: SelfAttention, x: Tensor) -> Tensor:
    """The values weighed by two softmaxes, one less some of the other."""
    q, k, v = s.heads(x)
    first, second = (
        causal(a @ b.mT * 0.7).softmax(-1) @ v for a, b in zip(q.chunk(2, -1), k.chunk(2, -1), strict=True)
    )
    share = torch.exp((s.bias.weight[0] * s.bias.weight[1]).sum())
    return joined(F.rms_norm(first - share * second, (DEPTH,)))


def table_of_biases(s: SelfAttention, x: Tensor) -> Tensor:
    q, k, v = s.heads(x)
    steps = x.shape[1]
    return joined(causal(scored(q, k) + s.out.weight[:steps, :steps]).softmax(-1) @ v)


# ---- queries and keys


def cosine(s: SelfAttention, x: Tensor) -> Tensor:
    q, k, v = s.heads(x)
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * s.bias.weight[0].exp()[:, None, None]
    return joined(causal(scores).softmax(-1) @ v)


def normalised(s: SelfAttention, x: Tensor) -> Tensor:
    q, k, v = s.heads(x)
    q, k = F.rms_norm(q, (DEPTH,)), F.rms_norm(k, (DEPTH,))
    return joined(F.scaled_dot_product_attention(q, k, v, is_causal=True))


def latent(s: SelfAttention, x: Tensor) -> Tensor:
    """Keys and values made of a few channels, and a part of the keys that all heads share, as in DeepSeek-V2."""
    w = s.qkv.weight
    c = F.rms_norm(F.linear(x, w[:6]), (6,))
    k, v, q = (split(F.linear(t, m), HEADS) for t, m in ((c, w[:16, :6]), (c, w[16:32, :6]), (x, w[6:22])))
    shared, turned = F.linear(x, w[22:24])[:, None].expand(-1, HEADS, -1, -1), split(F.linear(x, w[24:32]), HEADS)
    q, k = torch.cat([q, turned], -1), torch.cat([k, shared], -1)
    return joined(F.scaled_dot_product_attention(q, k, v, is_causal=True))


def latent_absorbed(s: SelfAttention, x: Tensor) -> Tensor:
    """The same few channels as keys and values of all heads, by einsum."""
    w = s.qkv.weight
    c = F.rms_norm(F.linear(x, w[:6]), (6,))
    up, down = w[:16, :6].reshape(HEADS, DEPTH, 6), w[16:32, :6].reshape(HEADS, DEPTH, 6)
    q = torch.einsum("bhtd,hdc->bhtc", split(F.linear(x, w[6:22]), HEADS), up)
    weights = causal(torch.einsum("bhtc,bsc->bhts", q, c) * 0.5).softmax(-1)
    return joined(torch.einsum("bhtc,hdc->bhtd", torch.einsum("bhts,bsc->bhtc", weights, c), down))


def batched(s: SelfAttention, x: Tensor) -> Tensor:
    q, k, v = (t.flatten(0, 1) for t in s.heads(x))
    bias = (s.bias.weight[0][:, None, None] * -between(x.shape[1])).repeat(x.shape[0], 1, 1)
    weights = causal(torch.baddbmm(bias, q, k.mT, beta=1, alpha=0.5)).softmax(-1)
    return joined(torch.bmm(weights, v).unflatten(0, (-1, HEADS)))


EXACT = {way.__name__: way for way in (
    sink, sink_first, softmax_one, softmax_one_padded, softmax_by_hand, sigmoids, rectified, linear, differential,
    table_of_biases, cosine, normalised, latent, latent_absorbed, batched,
)}  # fmt: skip


# ---- what is refused: from the scores and the values, and what the error says


def _talking(scores: Tensor, v: Tensor) -> Tensor:
    return causal(torch.einsum("bhij,gh->bgij", scores, torch.ones(HEADS, HEADS).tril())).softmax(-1) @ v


def _sparsemax(scores: Tensor, v: Tensor) -> Tensor:
    return causal(scores).sort(-1, descending=True).values @ v


def _greatest(scores: Tensor, v: Tensor) -> Tensor:
    scores = causal(scores)
    return scores.masked_fill(scores < scores.topk(3, -1).values[..., -1:], float("-inf")).softmax(-1) @ v


def _difference(scores: Tensor, v: Tensor) -> Tensor:
    return (causal(scores).softmax(-1) - 0.5 * causal(2 * scores).softmax(-1)) @ v


def _heads_last(scores: Tensor, v: Tensor) -> Tensor:
    return causal(scores).permute(0, 2, 3, 1).softmax(2).permute(0, 3, 1, 2) @ v


def _keys_first(scores: Tensor, v: Tensor) -> Tensor:
    return causal(scores).transpose(-2, -1).softmax(-2).transpose(-2, -1) @ v


def _dropped(scores: Tensor, v: Tensor) -> Tensor:
    return F.dropout(causal(scores).softmax(-1), 0.1, training=True) @ v


def _softmax_one_less_peak(scores: Tensor, v: Tensor) -> Tensor:
    scores = causal(scores)
    peak = scores.amax(-1, keepdim=True).clamp(min=0)
    powers = torch.exp(scores - peak)
    return powers / (powers.sum(-1, keepdim=True) + torch.exp(-peak)) @ v


def _sink_that_is_kept(scores: Tensor, v: Tensor) -> Tensor:
    return F.pad(causal(scores), (1, 0)).softmax(-1)[..., :-1] @ v


def _peak_of_others(scores: Tensor, v: Tensor) -> Tensor:
    return causal(scores - (2 * scores).amax(-1, keepdim=True)).softmax(-1) @ v


def _between_peak_and_powers(scores: Tensor, v: Tensor) -> Tensor:
    scores = causal(scores)
    return (0.5 * (scores - scores.amax(-1, keepdim=True))).softmax(-1) @ v


REFUSED = {
    "talking heads": (_talking, "nothing may order them, choose among them or mix the heads"),
    "sparsemax": (_sparsemax, "nothing may order them"),
    "the greatest only": (_greatest, "nothing may order them"),
    "a difference of weights": (_difference, r"\(a - b\) @ v is a @ v - b @ v"),
    "heads last": (_heads_last, r"Write scores as \[\.\.\., queries, keys\]"),
    "keys first": (_keys_first, r"Write scores as \[\.\.\., queries, keys\]"),
    "dropout that is on": (_dropped, "forward draws random numbers.*Dropout must be off"),
    "softmax one less its peak": (_softmax_one_less_peak, r"Write softmax\(-1\), or exp"),
    "a sink that is kept": (_sink_that_is_kept, "of which others than the sinks are left out"),
    "the peak of other scores": (_peak_of_others, r"Write softmax\(-1\), or exp"),
    "a product after the peak": (_between_peak_and_powers, "altered in the midst of a softmax"),
}
