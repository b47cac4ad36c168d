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


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(input_ids=x, use_cache=False).logits.transpose(1, 2)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("make", [gpt2, llama, mistral])
def test_greedy_decoding_is_theirs(make, attention):
    torch.manual_seed(0)
    options = {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": None}
    model = make(attn_implementation=attention, **options).eval()
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
