"""Language models of Hugging Face's transformers, as they are: greedy decoding equals their own ``generate``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen.generate import heads
from tests.generate.compiled import FAST
from tests.interop.peers import import_peer

transformers = import_peer("transformers")
VOCABULARY, STEPS, PROMPT = 97, 24, 5
TOKENS = {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": None}
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip


def gpt2(**options) -> nn.Module:
    sizes = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **options))


def llama(**options) -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **options))


def mistral(**options) -> nn.Module:
    """With a sliding window that is shorter than the text."""
    return transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES, sliding_window=8, **options))


OTHERS = {
    "BigCode": ("GPTBigCode", {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}),
    "Bloom": ("Bloom", {"hidden_size": 32, "n_layer": 1, "n_head": 4}),
    "Cohere": ("Cohere", {**SIZES}),
    "Falcon": ("Falcon", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}),
    "Gemma 2": (
        "Gemma2",
        {**SIZES, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8, "attn_implementation": "eager"},
    ),
    "GPT-J": ("GPTJ", {"n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4}),
    "GPT-NeoX": ("GPTNeoX", {**SIZES, "rotary_pct": 0.5}),
    "MPT": ("Mpt", {"d_model": 32, "n_layers": 1, "n_heads": 4}),
    "OPT": (
        "OPT",
        {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "word_embed_proj_dim": 32},
    ),
    "Qwen 3": ("Qwen3", {**SIZES, "head_dim": 8}),
}
"""By name: the class of the model, and its sizes."""


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(input_ids=x, use_cache=False).logits.transpose(1, 2)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("make", [gpt2, llama, mistral])
def test_greedy_decoding_is_theirs(make, attention):
    check_greedy(lambda: make(attn_implementation=attention, **TOKENS))


@pytest.mark.parametrize("name", OTHERS)
def test_greedy_decoding_of(name):
    family, sizes = OTHERS[name]
    config, model = (getattr(transformers, family + end) for end in ("Config", "ForCausalLM"))
    check_greedy(lambda: model(config(**{"vocab_size": VOCABULARY, **sizes, **TOKENS})))


def check_greedy(make) -> None:
    """Asserts that the greedy text of a model is that of its own ``generate``."""
    torch.manual_seed(0)
    model = make().eval()
    sampler = fastgen.Sampler(
        Logits(model), (STEPS,), heads.Categorical(VOCABULARY), order="time", predicts="next", machine=FAST
    )
    prompt = torch.randint(1, VOCABULARY, (3, PROMPT))
    start = torch.cat([torch.zeros(3, 1, dtype=torch.int64), prompt], 1)
    theirs = model.generate(
        start, attention_mask=torch.ones_like(start), max_new_tokens=STEPS - PROMPT, do_sample=False
    )
    known = torch.cat([prompt, torch.zeros(3, STEPS - PROMPT, dtype=torch.int64)], 1)
    mask = torch.arange(STEPS).expand(3, STEPS) < PROMPT
    assert torch.equal(sampler.sample(3, known=known, known_mask=mask, top_k=1), theirs[:, 1:])


TRANSLATORS = {
    "BART": (
        "Bart",
        {
            "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40,
            "forced_eos_token_id": None,
        },
    ),
    "T5": (
        "T5",
        {
            "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 4,
            "relative_attention_num_buckets": 8, "relative_attention_max_distance": 10,
        },
    ),
}  # fmt: skip
"""By name: the class of the model, and its sizes."""


class Translation(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        ones = torch.ones_like(source)
        told = self.model(input_ids=source, attention_mask=ones, decoder_input_ids=x, use_cache=False)
        return told.logits.transpose(1, 2)


@pytest.mark.parametrize("name", TRANSLATORS)
def test_greedy_translation_is_that_of(name):
    family, sizes = TRANSLATORS[name]
    config, model = (getattr(transformers, family + end) for end in ("Config", "ForConditionalGeneration"))
    torch.manual_seed(0)
    model = model(config(**{"vocab_size": VOCABULARY, "decoder_start_token_id": 0, **sizes, **TOKENS})).eval()
    source, steps = torch.randint(1, VOCABULARY, (3, 7)), 12
    head = heads.Categorical(VOCABULARY)
    sampler = fastgen.Sampler(
        Translation(model), (steps,), head, "time", predicts="next", machine=FAST, example_context=source[:2]
    )
    theirs = model.generate(
        source, attention_mask=torch.ones_like(source), max_new_tokens=steps, min_new_tokens=steps, do_sample=False
    )
    assert torch.equal(sampler.sample(3, context=source, top_k=1), theirs[:, 1 : steps + 1])
