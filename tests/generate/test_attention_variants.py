"""Variants of attention: exact, or refused with the reason and the cure; nothing in between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen.generate import CompileError, heads
from tests.generate.attention_variants import EXACT, REFUSED, scored
from tests.generate.compiled import FAST
from tests.generate.public_attention import HEADS, LEVELS, WIDTH, Decoder, joined
from tests.generate.seeded import built

STEPS = 12


def compiled(module: nn.Module, **options) -> fastgen.Sampler:
    head = heads.Categorical(LEVELS)
    return fastgen.Sampler(module, (STEPS,), head, "time", predicts="next", machine=FAST, **options)


def is_exact(sampler: fastgen.Sampler, n: int = 4, **options) -> bool:
    return torch.equal(sampler.sample(n, seed=3, **options), sampler.sample_naive(n, seed=3, **options))


@pytest.mark.parametrize("way", EXACT)
def test_a_variant_gives_the_samples_of_the_textbook_loop(way):
    assert is_exact(compiled(built(lambda: Decoder(EXACT[way], layers=1))))


@pytest.mark.parametrize("name", REFUSED)
def test_a_variant_is_refused_with_the_cure(name):
    weigh, said = REFUSED[name]

    def attend(s, x: Tensor) -> Tensor:
        q, k, v = s.heads(x)
        return joined(weigh(scored(q, k), v))

    with pytest.raises(CompileError, match=said):
        compiled(built(lambda: Decoder(attend, layers=1)))


def test_a_sink_is_read_again():
    module = built(lambda: Decoder(EXACT["sink"], layers=1))
    sampler = compiled(module)
    before = sampler.sample(4, seed=3)
    with torch.no_grad():
        module.attention[0].bias.weight[0] += 4
    sampler.refresh()
    assert is_exact(sampler)
    assert not torch.equal(sampler.sample(4, seed=3), before)


# ---- layers of PyTorch


class Layer(nn.Module):
    def __init__(self, use, **options) -> None:
        super().__init__()
        self.embed, self.out, self.use = nn.Embedding(LEVELS, WIDTH), nn.Linear(WIDTH, LEVELS), use
        self.layer = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.out(self.use(self.layer, self.embed(x), mask)).transpose(1, 2)


MULTIHEAD = {
    "a key that is zero": ({"add_zero_attn": True}, lambda layer, h, mask: layer(h, h, h, attn_mask=mask)[0]),
    "a learned key": (
        {"add_bias_kv": True},
        lambda layer, h, mask: layer(h, h, h, attn_mask=mask, need_weights=False)[0],
    ),
    "keys and values of other sizes": (
        {"kdim": 6, "vdim": 5},
        lambda layer, h, mask: layer(h, h[..., :6], h[..., 3:8], attn_mask=mask < 0, average_attn_weights=False)[0],
    ),
}


@pytest.mark.parametrize("name", MULTIHEAD)
def test_multihead_attention_with(name):
    options, use = MULTIHEAD[name]
    assert is_exact(compiled(built(lambda: Layer(use, **options))))


class Translator(nn.Module):
    """``nn.TransformerDecoder`` over the tokens of a context, those that are 0 left out where it is ``padded``."""

    def __init__(self, padded: bool, norm_first: bool) -> None:
        super().__init__()
        self.embed, self.out, self.padded = nn.Embedding(LEVELS, WIDTH), nn.Linear(WIDTH, LEVELS), padded
        layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 24, batch_first=True, norm_first=norm_first)
        self.layers = nn.TransformerDecoder(layer, 1)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        left_out = {"memory_key_padding_mask": source == 0} if self.padded else {}
        return self.out(self.layers(self.embed(x), self.embed(source), tgt_mask=mask, **left_out)).transpose(1, 2)


@pytest.mark.parametrize(("padded", "norm_first"), [(False, True), (True, False)])
def test_a_decoder_over_a_memory(padded, norm_first):
    source = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 0, 0, 0], [8, 9, 7, 9, 3, 0]])
    sampler = compiled(built(lambda: Translator(padded, norm_first)), example_context=source[:2])
    assert is_exact(sampler, 3, context=source)
