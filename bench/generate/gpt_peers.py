"""A GPT-2 of transformers in CTranslate2."""

from __future__ import annotations

import tempfile

import ctranslate2
import torch
from ctranslate2.converters.transformers import GPT2Loader
from torch import Tensor, nn


class CTranslate2:
    """CTranslate2's generator, float32, for a GPT-2 of transformers.

    Args:
        model: ``GPT2LMHeadModel``.
        threads: of a batch.
    """

    def __init__(self, model: nn.Module, threads: int) -> None:
        spec = GPT2Loader().get_model_spec(model)
        self.tokens = [str(i) for i in range(model.config.vocab_size)]
        spec.register_vocabulary(self.tokens)
        spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = self.tokens[0]
        spec.validate()
        spec.optimize(quantization=None)
        with tempfile.TemporaryDirectory() as folder:
            spec.save(folder)
            self.generator = ctranslate2.Generator(
                folder, device="cpu", compute_type="float32", inter_threads=1, intra_threads=threads
            )

    def generate(self, batch: int, steps: int, greedy: bool = False) -> Tensor:
        """Tokens ``[batch, steps]`` after the start token 0; no token ends a sequence."""
        results = self.generator.generate_batch(
            [self.tokens[:1]] * batch,
            max_length=steps,
            min_length=steps,
            sampling_topk=1 if greedy else 0,
            end_token=[],
            include_prompt_in_result=False,
        )
        return torch.tensor([result.sequences_ids[0] for result in results])
