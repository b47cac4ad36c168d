"""Operators that call functions of the user's: ``flex_attention``, scans, maps and loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import fastgen
from fastgen.generate import CompileError, NotCausalError, heads
from fastgen.generate.frontend.called_functions import written_out
from tests.generate.compiled import FAST
from tests.generate.public_attention import HEADS, LEVELS, Decoder, joined
from tests.generate.public_captured import FLEX, SCANS, Scanned, causal_flex
from tests.generate.seeded import built

STEPS = 13


def compiled(module, steps: int = STEPS, **options) -> fastgen.Sampler:
    return fastgen.Sampler(
        module, (steps,), heads.Categorical(LEVELS), "time", predicts="next", machine=FAST, **options
    )


def is_exact(sampler: fastgen.Sampler) -> bool:
    return torch.equal(sampler.sample(5, seed=3), sampler.sample_naive(5, seed=3))


@pytest.mark.parametrize("way", [*FLEX, "grouped"])
def test_flex_attention_gives_the_samples_of_the_textbook_loop(way):
    attend, keys = (causal_flex, 2) if way == "grouped" else (FLEX[way], HEADS)
    sampler = compiled(built(lambda: Decoder(attend, layers=1, keys=keys)))
    assert is_exact(sampler)
    attend = sampler.program.attends[0]
    assert attend.body.groups == (2 if way == "grouped" else attend.body.heads)


@pytest.mark.parametrize("way", SCANS)
def test_scans_give_the_samples_of_the_textbook_loop(way):
    assert is_exact(compiled(built(lambda: Scanned(SCANS[way]))))


@pytest.mark.parametrize("way", ["state_space", "two_states"])
def test_the_program_of_a_scan_does_not_grow_with_the_positions(way):
    module = built(lambda: Scanned(SCANS[way]))
    programs = [compiled(module, steps).program for steps in (12, 30)]
    sizes = [(len(program.instructions), len(program.operations)) for program in programs]
    assert sizes[0] == sizes[1]


def test_learned_tables_that_functions_close_over_are_read_again():
    module = built(lambda: Decoder(FLEX["capped_flex"], layers=1))
    sampler = compiled(module)
    before = sampler.sample(5, seed=3)
    with torch.no_grad():
        module.attention[0].bias.weight.add_(torch.arange(8.0)[:, None])
    sampler.refresh()
    assert is_exact(sampler)
    assert not torch.equal(sampler.sample(5, seed=3), before)


# ---- what is run in their place is the operator


def _scores(s, b, h, query, key):
    return 3 * torch.tanh(s / 3) - h * (query - key)


FUNCTIONS = {
    "flex_attention": lambda x: flex_attention(x, x[:, :2], x[:, 2:], score_mod=_scores, enable_gqa=True),
    "flex_attention, a query that sees nothing": lambda x: flex_attention(
        x, x, x, block_mask=create_block_mask(lambda b, h, q, k: q > k + h, None, 4, 6, 6, device="cpu")
    ),
    "scan": lambda x: torch.cat([t.flatten() for t in scan(lambda c, x: (c + x, c * x), x[0], x, dim=0, reverse=True)]),
    "associative_scan": lambda x: associative_scan(lambda a, b: a * b + 0 * a, x, dim=2, combine_mode="generic"),
    "while_loop": lambda x: while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x * 2), (torch.tensor(0), x))[1],
    "cond": lambda x: torch.cond(x.sum() > 100, torch.neg, torch.exp, (x,)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_written_out_is_what_pytorch_computes(name):
    x = torch.randn(2, 4, 6, 3, generator=torch.Generator().manual_seed(0))
    call, theirs = FUNCTIONS[name], FUNCTIONS[name](x)
    with written_out():
        ours = call(x)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(call(x), theirs, rtol=0, atol=0)  # afterwards all is as it was


# ---- what is refused


def _flex_of(**options):
    return lambda s, x: joined(flex_attention(*s.heads(x), **options))


def test_flex_attention_without_a_mask_is_not_causal():
    with pytest.raises(NotCausalError, match=r"depends on (element \(\d+,\)|itself)"):
        compiled(built(lambda: Decoder(_flex_of(), layers=1)))


def test_a_finite_number_for_later_scores_is_refused():
    def score(score, b, h, query, key):
        return torch.where(query >= key, score, -5.0)

    with pytest.raises(CompileError, match=r"masked with -5 at .*Mask with float\('-inf'\)"):
        compiled(built(lambda: Decoder(_flex_of(score_mod=score), layers=1)))


def test_a_scan_from_the_end_is_not_causal():
    def backwards(s: Scanned, h: Tensor) -> Tensor:
        return associative_scan(torch.add, s.a(h), dim=1, reverse=True, combine_mode="generic")

    with pytest.raises(NotCausalError):
        compiled(built(lambda: Scanned(backwards)))


BY_VALUES = {
    "cond": lambda s, h: torch.cond(h.sum() > 0, torch.neg, torch.exp, (h,)),
    "while_loop": lambda s, h: while_loop(lambda h: h.sum() < 3, lambda h: (h + 1,), (h,))[0],
}


@pytest.mark.parametrize("name", BY_VALUES)
def test_what_the_values_decide_is_refused_by_line_with_the_cure(name):
    with pytest.raises(CompileError, match=r"test_called_functions\.py.*torch\.where in place of an if on values"):
        compiled(built(lambda: Scanned(BY_VALUES[name])))
