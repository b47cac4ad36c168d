"""One seed, one sample: for any batch, number of threads, division into calls, prompt or stream."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastgen
from tests.generate.compiled import CASES, FAST, case, sampler
from tests.generate.seeded import built

SEQUENCES = [name for name in CASES if name.startswith(("wavenet", "tokens", "temporal", "causal_unet", "bytenet"))]
SMALL = ["masked_stack", "made_permuted", "causal_unet"]


def first_steps(compiled, count: int, batch: int) -> torch.Tensor:
    """A mask ``[batch, *event_shape]`` of the elements drawn at the first ``count`` steps."""
    before = torch.from_numpy(compiled.order.steps < count).reshape(1, *compiled.event_shape)
    return before.expand(batch, *compiled.event_shape)


@pytest.mark.parametrize("name", CASES)
def test_bitwise_the_same_for_any_batch_and_number_of_threads(name):
    compiled, contexts = sampler(name), case(name).contexts
    many = compiled.sample(35, seed=7, context=contexts(35), threads=1)
    assert torch.equal(compiled.sample(35, seed=7, context=contexts(35), threads=2), many)
    for n in (1, 7):
        for threads in (1, 2):
            assert torch.equal(compiled.sample(n, seed=7, context=contexts(n), threads=threads), many[:n])


@pytest.mark.parametrize("name", SMALL)
def test_bitwise_the_same_for_any_batch_on_the_reference_machine(name):
    compiled = sampler(name, "reference")
    mask = first_steps(compiled, compiled.steps - 8, 1)
    known = case(name).levels(1)
    samples = [compiled.sample(n, seed=7, known=known, known_mask=mask) for n in (1, 7)]
    assert torch.equal(samples[0], samples[1][:1])


@pytest.mark.parametrize("name", CASES)
def test_samples_and_seeds_differ(name):
    compiled, context = sampler(name), case(name).contexts(1)
    context = context if context is None or isinstance(context, torch.Tensor) else dict(context)
    drawn = torch.cat([compiled.sample(3, seed=seed, context=context) for seed in (0, 1, 2**63 - 1)])
    assert len(drawn.flatten(1).unique(dim=0)) == len(drawn)


@pytest.mark.parametrize("name", CASES)
def test_bitwise_the_same_in_chunks_of_steps(name):
    compiled, context = sampler(name), case(name).contexts(2)
    state = compiled.start(2, seed=9, context=context, log_prob=True)
    sizes = iter([1, 2, 3, 5, 8, 13, 21] * compiled.steps)
    while state.step < compiled.steps:
        compiled.advance(state, next(sizes))
    whole, log_prob = compiled.sample(2, seed=9, context=context, return_log_prob=True)
    assert torch.equal(state.levels, whole)
    assert torch.equal(state.run.log_prob, log_prob)


@pytest.mark.parametrize("name", CASES)
def test_a_known_prefix_is_read_in_parallel_as_step_by_step(name):
    compiled, context = sampler(name), case(name).contexts(2)
    whole, log_prob = compiled.sample(2, seed=5, context=context, return_log_prob=True)
    for prefix in (1, compiled.steps // 3, compiled.steps - 1):
        mask = first_steps(compiled, prefix, 2)
        again, again_log_prob = compiled.sample(
            2, seed=5, known=whole, known_mask=mask, context=context, return_log_prob=True
        )
        assert torch.equal(again, whole)
        assert torch.equal(again_log_prob, log_prob)
        stepwise = compiled.start(2, seed=5, known=whole, known_mask=mask, context=context, log_prob=True)
        for step in range(compiled.steps):
            compiled.machine.advance(stepwise.run, step, step + 1)
        assert torch.equal(stepwise.levels, whole)
        assert torch.equal(stepwise.run.log_prob, log_prob)


@pytest.mark.parametrize("name", CASES)
def test_what_is_known_is_kept_and_scored_with_the_rest(name):
    compiled, n = sampler(name), 2
    context, known = case(name).contexts(n), case(name).levels(n, seed=1)
    mask = torch.rand(known.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    options = {"known": known, "known_mask": mask, "context": context, "return_log_prob": True}
    drawn, log_prob = compiled.sample(n, seed=3, **options)
    assert torch.equal(drawn[mask], known[mask])
    assert (drawn != known)[~mask].any()
    alone = compiled.sample(1, seed=3, known=known[:1], known_mask=mask[:1], context=case(name).contexts(1))
    assert torch.equal(alone, drawn[:1])
    _, scored = compiled.sample(n, seed=8, known=drawn, known_mask=mask == mask, context=context, return_log_prob=True)
    assert torch.equal(log_prob, scored)


def test_one_known_event_serves_all_samples():
    compiled, known = sampler("masked_stack"), case("masked_stack").levels(1)
    mask = first_steps(compiled, 20, 1)
    apart = compiled.sample(3, seed=1, known=known.expand(3, -1, -1, -1), known_mask=mask.expand(3, -1, -1, -1))
    assert torch.equal(compiled.sample(3, seed=1, known=known, known_mask=mask), apart)


def test_one_context_serves_all_samples():
    compiled, context = sampler("gated_pixelcnn"), case("gated_pixelcnn").contexts(1)
    apart = {name: value.expand(3, *value.shape[1:]) for name, value in context.items()}
    assert torch.equal(compiled.sample(3, seed=1, context=context), compiled.sample(3, seed=1, context=apart))


@pytest.mark.parametrize(
    "name", [n for n in CASES if n.startswith(("gated", "pixelcnn_pp_colour", "wavenet_mix", "wavenet_rep"))]
)
def test_every_part_of_a_context_changes_the_sample(name):
    compiled, context = sampler(name), case(name).contexts(4)
    drawn = compiled.sample(4, seed=1, context=context)
    parts = context if isinstance(context, dict) else {"": context}
    for part, value in parts.items():
        other = dict(parts) | {part: value.roll(1, 0) if value.is_floating_point() else (value + 1) % 3}
        assert not torch.equal(
            compiled.sample(4, seed=1, context=other if isinstance(context, dict) else other[""]), drawn
        )


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_stream_is_the_sample_in_chunks(name):
    compiled, context = sampler(name), case(name).contexts(2)
    whole = compiled.sample(2, seed=6, context=context)
    for chunk in (7, compiled.steps, 5 * compiled.steps):
        pieces = list(compiled.stream(2, compiled.steps, chunk, seed=6, context=context))
        assert [p.shape[-1] for p in pieces[:-1]] == [chunk] * (len(pieces) - 1)
        assert torch.equal(torch.cat(pieces, -1), whole)
    given = compiled.steps // 2
    prompted = compiled.stream(2, compiled.steps - given, 6, seed=6, prompt=whole[..., :given], context=context)
    assert torch.equal(torch.cat(list(prompted), -1), whole[..., given:])


def test_a_stream_goes_beyond_the_event():
    """A sequence model long enough is compiled for any length."""
    compiled = case("wavenet").sampler(event_shape=(400,))
    chunks = compiled.stream(1, chunk=300, seed=2)
    first, second = next(chunks), next(chunks)
    assert first.shape == second.shape == (1, 300)
    longer = case("wavenet").sampler(event_shape=(600,)).sample(1, seed=2)
    assert torch.equal(torch.cat([first, second], -1), longer)
    assert torch.equal(compiled.sample(1, seed=2), longer[:, :400])


@pytest.mark.parametrize("name", ["wavenet_one_hot", "tokens_last", "bytenet"])
def test_top_k_and_top_p_draw_from_what_is_left_as_the_textbook_loop_does(name):
    compiled = sampler(name)
    for options in ({"top_k": 2}, {"top_p": 0.5}, {"top_k": 4, "top_p": 0.9, "temperature": 1.3}):
        drawn, proposal = compiled.sample(3, seed=2, return_proposal_log_prob=True, **options)
        naive, naive_proposal = compiled.sample_naive(3, seed=2, return_proposal_log_prob=True, **options)
        assert torch.equal(drawn, naive)
        torch.testing.assert_close(proposal, naive_proposal, rtol=1e-5, atol=1e-5)
    greedy = compiled.sample(1, seed=2, top_k=1)
    assert torch.equal(greedy, compiled.sample(1, seed=3, top_k=1))


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_rounded_weights_are_an_approximation_by_name(weights):
    compiled = sampler("pixelcnn")
    rounded = copy.copy(compiled)
    rounded.weights = weights
    rounded.run_on(FAST, compiled.compiled)
    levels = case("pixelcnn").levels(4)
    exact = compiled.log_prob(levels)
    _, log_prob = rounded.sample(4, known=levels, known_mask=levels == levels, return_log_prob=True)
    error = (log_prob - exact).abs() / exact.abs()
    assert 0 < error.max() < 0.05
    assert torch.equal(rounded.sample(7, seed=1)[:2], rounded.sample(2, seed=1))


def test_a_module_in_training_is_used_in_eval_mode_and_stays_in_training():
    module = copy.deepcopy(case("pixelcnn_pp").module).train()
    made = copy.copy(sampler("pixelcnn_pp"))
    made.request = replace(made.request, module=module)
    levels = case("pixelcnn_pp").levels(2)
    assert torch.equal(made.log_prob(levels), sampler("pixelcnn_pp").log_prob(levels))
    assert module.training


class Normalised(nn.Module):
    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.conv, self.norm, self.output = nn.Conv1d(1, dim, 3), nn.BatchNorm1d(dim), nn.Conv1d(dim, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(torch.relu(self.norm(self.conv(F.pad(x[:, None], (3, -1))))))


def test_every_part_keeps_its_mode_and_an_adapter_is_in_eval_mode_too():
    module, adapter = Normalised().train(), nn.Dropout(0.5).train()
    module.norm.eval()
    made = fastgen.Sampler(
        module, (12,), fastgen.heads.Categorical(5, to_input="unit"), order="time", adapter=adapter, machine=FAST
    )
    assert torch.equal(made.sample(3, seed=1), made.sample_naive(3, seed=1))
    assert module.training
    assert module.conv.training
    assert adapter.training
    assert not module.norm.training


class Depthwise(nn.Module):
    """Masked depthwise convolutions, one layer used twice."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(1, dim, 5, padding=2), nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.output = nn.Conv2d(dim, 5, 1)
        for layer, centre in ((self.first, 0), (self.again, 1)):
            mask, middle = torch.zeros_like(layer.weight), layer.kernel_size[0] // 2
            mask[:, :, :middle], mask[:, :, middle, : middle + centre] = 1, 1
            layer.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.conv2d(x, self.first.weight * self.first.mask, self.first.bias, padding=2)
        for _ in range(2):
            h = h + F.mish(F.conv2d(h, self.again.weight * self.again.mask, padding=1, groups=len(self.again.weight)))
        return self.output(h)


@pytest.mark.parametrize("size", [(1, 6, 1), (1, 1, 6), (1, 1, 1), (1, 5, 2)])
def test_an_image_may_have_one_column_or_one_row(size):
    compiled = fastgen.Sampler(
        built(Depthwise), event_shape=size, head=fastgen.heads.Categorical(5, to_input="unit"), machine=FAST
    )
    assert torch.equal(compiled.sample(4, seed=2), compiled.sample_naive(4, seed=2))


def test_what_is_known_may_be_lists():
    compiled, levels = sampler("tokens_last"), case("tokens_last").levels(2)
    mask = torch.arange(levels.shape[1]).expand_as(levels) < 5
    drawn = compiled.sample(2, seed=1, known=levels, known_mask=mask)
    assert torch.equal(compiled.sample(2, seed=1, known=levels.tolist(), known_mask=mask.tolist()), drawn)
    streamed = compiled.stream(2, levels.shape[1] - 5, seed=1, prompt=levels[:, :5].tolist())
    assert torch.equal(torch.cat(list(streamed), -1), drawn[:, 5:])


def test_an_order_may_be_an_array():
    made = case("made_permuted")
    array = fastgen.Sampler(made.module, made.event_shape, made.head, order=np.array(made.order), machine=FAST)
    assert torch.equal(array.sample(3, seed=1), sampler("made_permuted").sample(3, seed=1))
