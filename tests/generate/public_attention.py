"""Small transformers that follow the structure of public code; see ``networks``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.generate import heads
from tests.generate.seeded import built

LEVELS, WIDTH, HEADS = 11, 16, 4
DEPTH = WIDTH // HEADS
Attend = Callable[["SelfAttention", Tensor], Tensor]


def split(x: Tensor, count: int) -> Tensor:
    """``[N, T, count * depth]`` as ``[N, count, T, depth]``."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Queries, keys and values of one projection, and a way to attend."""

    def __init__(self, attend: Attend, keys: int = HEADS) -> None:
        super().__init__()
        self.keys, self.attend = keys, attend
        self.qkv, self.out = nn.Linear(WIDTH, WIDTH + 2 * keys * DEPTH), nn.Linear(WIDTH, WIDTH)
        self.bias = nn.Embedding(8, HEADS)
        self.register_buffer("mask", torch.tril(torch.ones(64, 64))[None, None])

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).split([WIDTH, self.keys * DEPTH, self.keys * DEPTH], -1)
        return split(q, HEADS), split(k, self.keys), split(v, self.keys)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attend(self, x))


class Decoder(nn.Module):
    """A language model: embeddings, layers of attention and a small network, logits ``[N, V, T]``."""

    def __init__(
        self, attend: Attend, layers: int = 2, keys: int = HEADS, positions: int = 0, norm=nn.LayerNorm
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(LEVELS, WIDTH)
        self.positions = nn.Embedding(positions, WIDTH) if positions else None
        self.attention = nn.ModuleList(SelfAttention(attend, keys) for _ in range(layers))
        self.first, self.second = (nn.ModuleList(norm(WIDTH) for _ in range(layers)) for _ in range(2))
        self.up, self.gate = (nn.ModuleList(nn.Linear(WIDTH, 24) for _ in range(layers)) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(24, WIDTH) for _ in range(layers))
        self.last, self.head = norm(WIDTH), nn.Linear(WIDTH, LEVELS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        if self.positions is not None:
            h = h + self.positions(torch.arange(x.shape[1]))
        for n, attention in enumerate(self.attention):
            h = h + attention(self.first[n](h))
            y = self.second[n](h)
            h = h + self.down[n](F.silu(self.gate[n](y)) * self.up[n](y))
        return self.head(self.last(h)).transpose(1, 2)


def between(steps: int) -> Tensor:
    """``[T, T]``: how far a key lies before a query."""
    place = torch.arange(steps)
    return place[:, None] - place


# ---- ways to attend


def masked_fill(s: SelfAttention, x: Tensor) -> Tensor:
    """Written out with a triangle of ones, as in nanoGPT."""
    q, k, v = s.heads(x)
    steps = x.shape[1]
    weights = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
    weights = weights.masked_fill(s.mask[:, :, :steps, :steps] == 0, float("-inf"))
    return joined(F.dropout(F.softmax(weights, dim=-1), 0.1, s.training) @ v)


def _rotate_half(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


def _angles(steps: int) -> Tensor:
    return torch.outer(torch.arange(steps).float(), 100.0 ** (-torch.arange(0, DEPTH, 2).float() / DEPTH))


def rotary_grouped(s: SelfAttention, x: Tensor) -> Tensor:
    """Rotary positions in halves, keys shared by heads, an additive mask, a softmax in float32, as in Llama."""
    q, k, v = s.heads(x)
    angles = torch.cat([_angles(x.shape[1])] * 2, -1)
    q, k = (t * angles.cos() + _rotate_half(t) * angles.sin() for t in (q, k))
    batch, groups, steps, depth = k.shape
    k, v = (t[:, :, None].expand(batch, groups, HEADS // groups, steps, depth).flatten(1, 2) for t in (k, v))
    mask = torch.full((steps, steps), torch.finfo(torch.float32).min).triu(1)
    weights = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(depth) + mask
    return joined(torch.matmul(F.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype), v))


def rotary_pairs(s: SelfAttention, x: Tensor) -> Tensor:
    """Rotary positions of neighbouring channels."""
    q, k, v = s.heads(x)
    angles = _angles(x.shape[1])

    def turned(t: Tensor) -> Tensor:
        a, b = t[..., 0::2], t[..., 1::2]
        return torch.stack([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1).flatten(-2)

    return joined(F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True))


def linear_bias_in_a_window(s: SelfAttention, x: Tensor) -> Tensor:
    """ALiBi, by einsum, over the last seven positions."""
    q, k, v = s.heads(x)
    apart = between(x.shape[1])
    slopes = 2.0 ** -torch.arange(1, HEADS + 1)[:, None, None]
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * DEPTH**-0.5 - slopes * apart
    weights = torch.where((apart >= 0) & (apart < 7), scores, torch.tensor(float("-inf"))).softmax(-1)
    return torch.einsum("bhij,bhjd->bihd", weights, v).flatten(2)


def relative_buckets(s: SelfAttention, x: Tensor) -> Tensor:
    """A learned bias by distance, a finite mask that is added, no scale, as in T5."""
    q, k, v = s.heads(x)
    apart = between(x.shape[1])
    bias = s.bias(apart.clamp(0, 7)).permute(2, 0, 1)[None] + torch.where(apart >= 0, 0.0, -1e9)
    scores = torch.matmul(q, k.transpose(3, 2)) + bias
    return joined(torch.matmul(F.softmax(scores.float(), dim=-1).type_as(scores), v))


def relative_shift(s: SelfAttention, x: Tensor) -> Tensor:
    """Scores by content and by distance, the latter shifted row by row, as in Transformer-XL."""
    q, k, v = (t.transpose(1, 2) for t in s.heads(x))
    batch, steps = x.shape[:2]
    distance = torch.arange(steps - 1, -1, -1.0)
    angles = torch.outer(distance, 100.0 ** (-torch.arange(0, WIDTH, 2).float() / WIDTH))
    r = F.linear(torch.cat([angles.sin(), angles.cos()], -1).to(x.dtype), s.out.weight).view(steps, HEADS, DEPTH)
    content = torch.einsum("bind,bjnd->bnij", q + s.bias.weight[:1, :, None], k)
    place = torch.einsum("bind,jnd->bnij", q - s.bias.weight[1:2, :, None], r)
    padded = torch.cat([place.new_zeros(batch, HEADS, steps, 1), place], -1)
    place = padded.view(batch, HEADS, steps + 1, steps)[:, :, 1:].view_as(place)
    scores = ((content + place) / math.sqrt(DEPTH)).masked_fill(between(steps) < 0, float("-inf"))
    return torch.einsum("bnij,bjnd->bind", F.softmax(scores, -1), v).flatten(2)


def strided_heads(s: SelfAttention, x: Tensor) -> Tensor:
    """A pattern for every head: a window, every fourth position, a block, the ends of blocks."""
    apart, key = between(x.shape[1]), torch.arange(x.shape[1])
    seen = torch.stack(
        [apart < 4, apart % 4 == 0, key // 4 == key[:, None] // 4, (key % 4 == 3) | (apart == 0)]
    ) & (apart >= 0)  # fmt: skip
    return joined(F.scaled_dot_product_attention(*s.heads(x), attn_mask=seen))


def strictly_before(s: SelfAttention, x: Tensor) -> Tensor:
    """The first position attends to nothing and gives 0."""
    return joined(F.scaled_dot_product_attention(*s.heads(x), attn_mask=between(x.shape[1]) > 0))


def soft_cap(s: SelfAttention, x: Tensor) -> Tensor:
    """Normalised queries and keys, scores bounded by a tanh, as in Gemma 2."""
    q, k, v = s.heads(x)
    q, k = F.layer_norm(q, (DEPTH,)), F.rms_norm(k, (DEPTH,))
    scores = 5.0 * torch.tanh(q @ k.mT / 5.0)
    return joined(scores.masked_fill(between(x.shape[1]) < 0, float("-inf")).softmax(-1) @ v)


def retention(s: SelfAttention, x: Tensor) -> Tensor:
    """Weights that decay with the distance, without a softmax, divided by their sum, as in RetNet."""
    q, k, v = s.heads(x)
    apart = between(x.shape[1])
    decay = torch.tensor([0.9, 0.8, 0.95, 0.5])[:, None, None] ** apart.clamp(min=0)
    weights = (q @ k.transpose(-1, -2)) * torch.where(apart >= 0, decay, 0.0)
    weights = weights / weights.sum(-1, keepdim=True).abs().clamp(min=1)
    return joined(weights @ v)


def blocks(s: SelfAttention, x: Tensor) -> Tensor:
    """Blocks of four positions that see themselves and the block before."""
    q, k, v = (t.unflatten(2, (-1, 4)) for t in s.heads(x))
    k, v = (torch.cat([F.pad(t, (0, 0, 0, 0, 1, -1)), t], 3) for t in (k, v))
    seen = (torch.arange(8) <= torch.arange(4)[:, None] + 4).repeat(q.shape[2], 1, 1)
    seen[0, :, :4] = False
    return joined(F.scaled_dot_product_attention(q, k, v, attn_mask=seen).flatten(2, 3))


def _language(attend: Attend, steps: int = 16, **options):
    module = built(lambda: Decoder(attend, **options))
    return module, (steps,), heads.Categorical(LEVELS), "time", "next", None


def gpt():
    return _language(masked_fill, positions=18)


def llama():
    return _language(rotary_grouped, keys=2, norm=nn.RMSNorm)


def transformer_xl():
    return _language(relative_shift, layers=1)


def sparse_transformer():
    return _language(strided_heads, layers=1)


def retnet():
    return _language(retention, layers=1)


# ---- PyTorch's own layers


class Translator(nn.Module):
    """``nn.Transformer``, from the tokens of a source to those of a target."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(LEVELS, WIDTH), nn.Linear(WIDTH, LEVELS)
        self.network = nn.Transformer(WIDTH, HEADS, 1, 1, 24, batch_first=True)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.network(self.embed(source), self.embed(x), tgt_mask=mask)).transpose(1, 2)


def translator():
    module, source = built(Translator), torch.zeros(2, 7, dtype=torch.int64)
    return module, (10,), heads.Categorical(LEVELS), "time", "next", None, source


# ---- images


class MaskedConv(nn.Conv2d):
    """A 3 x 3 convolution of what is above and to the left; ``itself``: of the pixel, too."""

    def __init__(self, channels: int, filters: int, itself: bool) -> None:
        super().__init__(channels, filters, 3, padding=1)
        mask = torch.ones(3, 3)
        mask[2], mask[1, 2], mask[1, 1] = 0, 0, float(itself)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


class PixelSnail(nn.Module):
    """Causal convolutions, and attention to all pixels before, with a finite mask and none for the first pixel."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first, self.second = MaskedConv(1, WIDTH, False), MaskedConv(WIDTH, WIDTH, True)
        self.query, self.key, self.value = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH + 1, WIDTH),
            nn.Linear(WIDTH + 1, WIDTH),
        )
        self.out = nn.Conv2d(2 * WIDTH, 4, 1)
        pixels = size * size
        self.register_buffer("mask", torch.tril(torch.ones(1, pixels, pixels), -1))
        self.register_buffer("start", (torch.arange(pixels) > 0).float()[:, None])

    def forward(self, x: Tensor) -> Tensor:
        x = x.float() - 1.5
        h = self.second(F.elu(self.first(x)))
        flat, seen = h.flatten(2).transpose(1, 2), torch.cat([h, x], 1).flatten(2).transpose(1, 2)
        q, k, v = split(self.query(flat), 2), split(self.key(seen), 2).transpose(2, 3), split(self.value(seen), 2)
        weights = (torch.matmul(q, k) / math.sqrt(WIDTH // 2)).masked_fill(self.mask == 0, -1e4)
        weights = torch.softmax(weights, 3) * self.start
        attended = joined(weights @ v).transpose(1, 2).reshape(h.shape)
        return self.out(F.elu(torch.cat([h, attended], 1)))


def pixelsnail():
    return built(lambda: PixelSnail(5)), (1, 5, 5), heads.Categorical(4, to_input="float"), "raster", "same", None


class ImageGpt(nn.Module):
    """Pixels as tokens in raster order behind a start token; ``local``: rows above and columns beside only."""

    def __init__(self, size: int, local: bool) -> None:
        super().__init__()
        self.embed, self.qkv, self.head = nn.Embedding(6, WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 6)
        self.start = nn.Parameter(torch.randn(WIDTH))
        self.row, self.column = nn.Parameter(torch.randn(size, 1, WIDTH)), nn.Parameter(torch.randn(size, WIDTH))
        row, column = torch.arange(size * size) // size, torch.arange(size * size) % size
        above, left = row[:, None] - row, column[:, None] - column
        near = ((above == 0) & (left >= 0)) | ((above > 0) & (above < 3) & (left.abs() < 2))
        self.register_buffer("seen", near if local else between(size * size) >= 0)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        h = self.embed(x.flatten(1))
        h = torch.cat([self.start.expand(batch, 1, -1), h[:, :-1]], 1) + (self.row + self.column).flatten(0, 1)
        q, k, v = self.qkv(h).view(batch, -1, 3, HEADS, DEPTH).permute(2, 0, 3, 1, 4)
        h = h + joined(F.scaled_dot_product_attention(q, k, v, attn_mask=self.seen))
        return self.head(h).transpose(1, 2).view(batch, 6, height, width)


def image_gpt():
    return built(lambda: ImageGpt(4, local=False)), (1, 4, 4), heads.Categorical(6), "raster", "same", None


def image_transformer():
    return built(lambda: ImageGpt(5, local=True)), (1, 5, 5), heads.Categorical(6), "raster", "same", None


WAYS = {way.__name__: way for way in (
    masked_fill, rotary_grouped, rotary_pairs, linear_bias_in_a_window, relative_buckets, relative_shift, strided_heads,
    strictly_before, soft_cap, retention, blocks,
)}  # fmt: skip
