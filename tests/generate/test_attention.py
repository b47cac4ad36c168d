"""Attention: what is recognised gives the textbook loop's samples, and what looks ahead is refused by name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from fastgen.generate import CompileError, NotCausalError, heads
from tests.generate.compiled import FAST, MACHINES
from tests.generate.however_made import SAMPLES, SEED, check_however_made
from tests.generate.public_attention import (
    DEPTH,
    HEADS,
    LEVELS,
    WAYS,
    WIDTH,
    Decoder,
    between,
    joined,
    masked_fill,
    translator,
)
from tests.generate.seeded import built

STEPS = 16


def compiled(module: nn.Module, steps: int = STEPS, **options) -> fastgen.Sampler:
    head = heads.Categorical(LEVELS)
    return fastgen.Sampler(module, (steps,), head, "time", **({"predicts": "next", "machine": FAST} | options))


def decoder(attend, **options) -> nn.Module:
    return built(lambda: Decoder(attend, **({"layers": 1} | options)))


def is_exact(sampler: fastgen.Sampler, n: int = 4, **options) -> bool:
    return torch.equal(sampler.sample(n, seed=3, **options), sampler.sample_naive(n, seed=3, **options))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("way", WAYS)
def test_samples_are_those_of_the_textbook_loop(way, machine):
    assert is_exact(compiled(decoder(WAYS[way], keys=2 if way == "rotary_grouped" else HEADS), machine=machine))


@pytest.mark.parametrize("way", WAYS)
def test_a_sample_is_the_same_however_it_is_made(way, tmp_path):
    """For any batch, number of threads, split in calls, way of reading a prompt, and after saving and forking."""
    sampler = compiled(decoder(WAYS[way], keys=2 if way == "rotary_grouped" else HEADS))
    whole, _ = check_however_made(sampler, tmp_path)
    assert torch.equal(sampler.sample(64, seed=SEED)[:SAMPLES], whole)
    known = torch.arange(STEPS).expand(SAMPLES, STEPS) < 9
    assert torch.equal(sampler.sample(SAMPLES, seed=SEED, known=whole, known_mask=known), whole)


def test_a_step_reads_keys_once_and_the_program_does_not_grow_with_the_heads_or_the_steps():
    sizes = set()
    for steps in (12, 40):
        program = compiled(decoder(masked_fill), steps).program
        sizes.add((len(program.instructions), len(program.key_sets), len(program.key_runs), len(program.operations)))
    assert len(sizes) == 1
    (attend,) = program.attends
    assert attend.body.heads == attend.body.groups == HEADS
    assert len(program.key_sets) == 1


def test_a_window_is_a_ring():
    program = compiled(decoder(WAYS["linear_bias_in_a_window"]), 100).program
    (attend,) = program.attends
    for number in (attend.body.key, attend.body.value):
        assert program.buffers[program.operands[number].buffer].positions == 7 + program.lookahead - 1


def test_shared_keys_are_kept_once():
    program = compiled(decoder(WAYS["rotary_grouped"], keys=2)).program
    (attend,) = program.attends
    assert (attend.body.heads, attend.body.groups) == (HEADS, 2)
    assert program.buffers[program.operands[attend.body.key].buffer].channels == 2 * DEPTH


def test_a_bias_by_distance_is_kept_by_distance():
    sampler = compiled(decoder(WAYS["relative_buckets"]))
    (score,) = sampler.program.score_operands
    assert (score.column_stride, score.key_stride) == (-1, 1)
    assert sampler.program.buffers[sampler.program.operands[score.operand].buffer].channels == HEADS * (2 * STEPS - 1)


def test_heads_that_share_some_channels_of_their_keys_are_told_apart():
    """As where a rotary part of the keys is one for all heads."""

    def attend(s, x: Tensor) -> Tensor:
        q, k, v = s.heads(x)
        k = torch.cat([k[:, :1, :, :2].expand(-1, HEADS, -1, -1), k[..., 2:]], -1)
        return joined(F.scaled_dot_product_attention(q, k, v, is_causal=True))

    assert is_exact(compiled(decoder(attend)))


def test_refresh_takes_new_biases():
    module = decoder(WAYS["relative_buckets"])
    sampler = compiled(module)
    before = sampler.sample(4, seed=3)
    with torch.no_grad():
        for attention in module.attention:
            attention.bias.weight.copy_(torch.randn(8, HEADS, generator=torch.Generator().manual_seed(1)) * 4)
    sampler.refresh()
    assert is_exact(sampler)
    assert not torch.equal(sampler.sample(4, seed=3), before)


# ---- PyTorch's layers


class Layers(nn.Module):
    def __init__(self, layer: nn.Module, use) -> None:
        super().__init__()
        self.embed, self.layer, self.head, self.use = nn.Embedding(LEVELS, WIDTH), layer, nn.Linear(WIDTH, LEVELS), use

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.use(self.layer, self.embed(x), mask)).transpose(1, 2)


def _encoder(**options) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


LAYERS = {
    "multihead": (
        lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
        lambda layer, h, mask: layer(h, h, h, attn_mask=mask, need_weights=False)[0],
    ),
    "multihead, with weights": (
        lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
        lambda layer, h, mask: layer(h, h, h, attn_mask=mask)[0],
    ),
    "multihead, sequence first": (
        lambda: nn.MultiheadAttention(WIDTH, HEADS),
        lambda layer, h, mask: layer(*[h.transpose(0, 1)] * 3, attn_mask=mask, is_causal=True)[0].transpose(0, 1),
    ),
    "encoder": (
        lambda: _encoder(batch_first=True, norm_first=True, activation="gelu"),
        lambda layer, h, mask: layer(h, mask=mask, is_causal=True),
    ),
    "encoder that asks whether its mask is causal": (
        _encoder,
        lambda layer, h, mask: layer(h.transpose(0, 1), mask=mask).transpose(0, 1),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_pytorch(name):
    make, use = LAYERS[name]
    assert is_exact(compiled(built(lambda: Layers(make(), use))))


# ---- what is refused


def _softmax_of(mask):
    def attend(s, x: Tensor) -> Tensor:
        q, k, v = s.heads(x)
        return joined(mask(q @ k.transpose(-2, -1) * DEPTH**-0.5, between(x.shape[1]) < 0).softmax(-1) @ v)

    return attend


@pytest.mark.parametrize(
    "attend",
    [
        lambda s, x: joined(F.scaled_dot_product_attention(*s.heads(x))),
        lambda s, x: joined(F.scaled_dot_product_attention(*s.heads(x), attn_mask=between(x.shape[1]) > -2)),
        _softmax_of(lambda scores, later: scores),
        _softmax_of(lambda scores, later: scores.masked_fill(later.roll(1, 0), float("-inf"))),
    ],
    ids=["no mask", "one too far", "written out", "a mask that is shifted"],
)
def test_attention_to_the_future_is_not_causal(attend):
    with pytest.raises(NotCausalError, match=r"not causal for order 'time'.* depends on (element \(\d+,\)|itself)"):
        compiled(decoder(attend))


@pytest.mark.parametrize("value", [-5.0, -100.0])
def test_a_mask_through_which_later_elements_are_seen_is_refused(value):
    with pytest.raises(CompileError, match=rf"masked with {value:g} at .*Mask with float\('-inf'\)"):
        compiled(decoder(_softmax_of(lambda scores, later: scores.masked_fill(later, value))))


WEIGHS_WRONG = {
    "all keys masked with one number": (
        lambda scores, later: scores.masked_fill(later.logical_not().triu().logical_or(later), -1e4).softmax(-1),
        "all keys of a query are masked with one finite number",
    ),
    "a mask that is turned round": (
        lambda scores, later: (scores.masked_fill(later, -1e4) * -torch.arange(1.0, later.shape[1] + 1)).softmax(-1),
        "masked with 160000 at",
    ),
    "a mask on the weights": (
        lambda scores, later: scores.masked_fill(later, -torch.inf).softmax(-1) + later * -1e4,
        "so that masked keys get a weight",
    ),
    "a mask of the input": (
        lambda scores, later: scores.masked_fill(scores.amax(-1, keepdim=True) > 0, -torch.inf).softmax(-1),
        "has no rule",
    ),
}


@pytest.mark.parametrize("name", WEIGHS_WRONG)
def test_masks_that_are_none_are_refused(name):
    weigh, said = WEIGHS_WRONG[name]

    def attend(s, x: Tensor) -> Tensor:
        q, k, v = s.heads(x)
        return joined(weigh(q @ k.transpose(-2, -1), between(x.shape[1]) < 0) @ v)

    with pytest.raises(CompileError, match=said):
        compiled(decoder(attend))


def test_a_boolean_mask_of_the_input_is_no_bias():
    def attend(s, x: Tensor) -> Tensor:
        q, k, v = s.heads(x)
        return joined(F.scaled_dot_product_attention(q, k, v, attn_mask=q[..., :1] > 0))

    with pytest.raises(CompileError, match="attention with a mask that depends on the input"):
        compiled(decoder(attend))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("added", [False, True])
def test_a_finite_mask_is_accepted_where_its_softmax_is_zero_and_noticed_where_it_is_not(added, machine):
    def mask(scores: Tensor, later: Tensor) -> Tensor:
        return scores + later * -2000.0 if added else scores.masked_fill(later, -2000.0)

    module = decoder(_softmax_of(mask))
    sampler = compiled(module, machine=machine, verify=False)
    assert is_exact(sampler)
    with torch.no_grad():
        for attention in module.attention:
            attention.qkv.weight.zero_()
            attention.qkv.bias[:WIDTH], attention.qkv.bias[WIDTH : 2 * WIDTH] = 40.0, -40.0
    sampler.refresh()
    with pytest.raises(ValueError, match=r"the greatest score of attention must be .* or more, where keys are masked"):
        sampler.sample(2)


def test_a_query_that_sees_nothing_is_nan_by_hand():
    attend = _softmax_of(
        lambda scores, later: scores.masked_fill(later.logical_not().triu().logical_or(later), -torch.inf)
    )
    with pytest.raises(CompileError, match=r"a query sees no key at .* where the softmax is NaN"):
        compiled(decoder(attend))


def test_a_context_of_length_zero_is_refused():
    module, shape, head, order, predicts, _, source = translator()
    with pytest.raises(ValueError, match=r"example_context must have elements, got \[1, 0\]"):
        fastgen.Sampler(module, shape, head, order, predicts=predicts, example_context=source[:1, :0])


def test_a_prompt_longer_than_the_table_of_positions_is_refused():
    with pytest.raises(CompileError, match=r"index out of range"):
        compiled(decoder(masked_fill, positions=12), steps=20)
