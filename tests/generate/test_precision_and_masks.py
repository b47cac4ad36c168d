"""Precision, attention, masks, infinite buffers: accepted where the samples are the module's, else the true reason."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from fastgen.generate import CompileError, heads
from tests.generate.compiled import FAST

LEVELS = 12


class Tokens(nn.Module):
    def __init__(self, inner=lambda s, h: h) -> None:
        super().__init__()
        self.e, self.qkv, self.out = nn.Embedding(LEVELS, 8), nn.Linear(8, 24), nn.Linear(8, LEVELS)
        self.inner = inner
        self.register_buffer("best_loss", torch.tensor(float("inf")))
        self.register_buffer("forbidden", torch.zeros(LEVELS).masked_fill(torch.arange(LEVELS) == 3, float("-inf")))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(self, self.e(x))).transpose(1, 2)


def compiled(module: nn.Module, steps: int = 8, **options) -> fastgen.Sampler:
    options = {"order": "time", "predicts": "next", "machine": FAST, "threads": 1} | options
    return fastgen.Sampler(module.eval(), (steps,), heads.Categorical(LEVELS), **options)


def is_exact(sampler: fastgen.Sampler) -> bool:
    drawn, log_prob = sampler.sample(3, seed=1, return_log_prob=True)
    torch.testing.assert_close(log_prob.float(), sampler.log_prob(drawn), rtol=1e-5, atol=1e-5, check_dtype=False)
    return torch.equal(drawn, sampler.sample_naive(3, seed=1))


# ---- half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    """Fault generation_08: what the sampler computes in float32 is not what the module computes."""
    with pytest.raises(CompileError, match=rf"computes in {dtype} at .*test_precision_and_masks\.py.*float32 copy"):
        compiled(Tokens().to(dtype))


def test_autocast_is_refused():
    def inner(s: Tokens, h: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return s.qkv(h)[..., :8].float()

    with pytest.raises(CompileError, match=r"computes in torch.bfloat16 at .*without torch\.autocast"):
        compiled(Tokens(inner))


def test_half_precision_weights_that_become_float32_are_fine():
    torch.manual_seed(0)
    module = Tokens(lambda s, h: F.linear(h, s.qkv.weight.float()[:8]))
    module.qkv.half()
    assert is_exact(compiled(module))


def test_a_float64_module_is_computed_in_float32():
    torch.manual_seed(0)
    assert is_exact(compiled(Tokens(lambda s, h: torch.tanh(h)).double()))


# ---- attention


def test_attention_with_dropout_is_random():
    module = Tokens(lambda s, h: F.scaled_dot_product_attention(h, h, h, is_causal=True, dropout_p=0.5))
    with pytest.raises(CompileError, match=r"random numbers"):
        compiled(module)


def written_out(kind: str, steps: int = 6):
    lower = torch.tril(torch.ones(steps, steps))

    def inner(s: Tokens, h: Tensor) -> Tensor:
        q, k, v = s.qkv(F.pad(h, (0, 0, 1, -1))).chunk(3, -1)
        score = (q[:, :, None] * k[:, None]).sum(-1)
        if kind == "softmax of a masked score":
            weights = score.masked_fill(lower == 0, float("-inf")).softmax(-1)
        elif kind == "softmax of an added mask":
            weights = ((score + torch.zeros(steps, steps).masked_fill(lower == 0, float("-inf"))) / 2).softmax(-1)
        else:
            weights = score.exp() * lower
            weights = weights / weights.sum(-1, keepdim=True)
        return (weights[..., None] * v[:, None]).sum(2)

    return inner


@pytest.mark.parametrize("kind", ["softmax of a masked score", "softmax of an added mask", "mask on the weights"])
def test_zeros_of_masks_are_followed(kind):
    """Fault generation_17: through products of two tensors, and exp(-inf) in a softmax."""
    torch.manual_seed(0)
    assert is_exact(compiled(Tokens(written_out(kind)), 6, order=list(range(6)), predicts="same"))


def test_a_finite_mask_is_named_where_it_lets_the_future_through():
    def inner(s: Tokens, h: Tensor) -> Tensor:
        score = (h[:, :, None] * h[:, None]).sum(-1).masked_fill(torch.ones(6, 6).triu(1) > 0, -1e9)
        return (score.softmax(-1)[..., None] * h[:, None]).sum(2)

    with pytest.raises(CompileError, match=r"not causal.*finite number -1e\+09 at .*float\('-inf'\)"):
        compiled(Tokens(inner), 6, order=list(range(6)), predicts="same")


def test_a_finite_mask_over_classes_hides_nothing():
    torch.manual_seed(0)
    assert is_exact(compiled(Tokens(lambda s, h: h.masked_fill(torch.arange(8) == 3, -1e4).softmax(-1))))


# ---- infinite buffers


def test_infinite_buffers_that_are_not_read_or_are_masks_are_accepted():
    """Fault generation_15."""
    torch.manual_seed(0)
    assert is_exact(compiled(Tokens()))
    module = Tokens()
    sampler = compiled(module, adapter=lambda o: o + module.forbidden[:, None])
    assert is_exact(sampler)
    assert not (sampler.sample(50) == 3).any()


def test_values_that_are_not_finite_are_named_as_the_module_names_them():
    module = Tokens(lambda s, h: h * s.best_loss)
    module.best_loss.fill_(torch.nan)
    with pytest.raises(CompileError, match=r"^buffer 'best_loss' holds NaN"):
        compiled(module)
    module = Tokens()
    with torch.no_grad():
        module.qkv.weight.fill_(torch.inf)
    assert is_exact(compiled(module))
    with torch.no_grad():
        module.out.bias.fill_(torch.inf)
    with pytest.raises(CompileError, match=r"^parameter 'out\.bias' holds NaN or infinite"):
        compiled(module)
