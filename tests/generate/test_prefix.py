"""Networks that see all of a known prefix: samples are the textbook loop's, and what looks further is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from fastgen.generate import NotCausalError, heads
from fastgen.generate.heads import Gaussian
from tests.generate.compiled import FAST, MACHINES
from tests.generate.however_made import SAMPLES, SEED, check_however_made
from tests.generate.public_attention import LEVELS, WIDTH, between, joined
from tests.generate.seeded import built
from tests.generate.test_attention import compiled, decoder

STEPS, PREFIX = 30, 7


def prefix_lm(seen: int, window: int = STEPS):
    """Attention whose first ``seen`` positions see one another."""

    def attend(s, x: Tensor) -> Tensor:
        place, apart = torch.arange(x.shape[1]), between(x.shape[1])
        mask = ((apart >= 0) & (apart < window)) | ((place[:, None] < seen) & (place < seen))
        return joined(F.scaled_dot_product_attention(*s.heads(x), attn_mask=mask))

    return attend


class Both(nn.Module):
    """A convolution over the prefix that looks both ways, causal convolutions and an LSTM behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(LEVELS, WIDTH), nn.Linear(WIDTH, LEVELS)
        self.wide, self.causal = nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.Conv1d(WIDTH, WIDTH, 2, dilation=3)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).transpose(1, 2)
        first = F.pad(self.wide(h[..., :PREFIX]), (0, h.shape[-1] - PREFIX))
        h = torch.tanh(first + self.causal(F.pad(h, (3, 0))))
        return self.head(self.lstm(h.transpose(1, 2))[0]).transpose(1, 2)


NETWORKS = {
    "prefix": lambda: decoder(prefix_lm(PREFIX), layers=2),
    "prefix and the first input": lambda: decoder(prefix_lm(PREFIX + 1), layers=2),
    "window": lambda: decoder(prefix_lm(PREFIX + 1, 5), layers=2),
    "positions": lambda: decoder(prefix_lm(PREFIX), positions=STEPS),
    "causal": lambda: decoder(prefix_lm(0)),
    "convolutions and an LSTM": lambda: built(Both),
}


def sampler(name: str, **options) -> fastgen.Sampler:
    return compiled(NETWORKS[name](), STEPS, **({"prefix": PREFIX} | options))


def prompts(n: int, length: int = PREFIX, seed: int = 0) -> dict[str, Tensor]:
    """Known levels of which the first ``length`` are known."""
    levels = torch.randint(0, LEVELS, (n, STEPS), generator=torch.Generator().manual_seed(seed))
    return {"known": levels, "known_mask": (torch.arange(STEPS) < length).expand(n, -1)}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", NETWORKS)
def test_samples_and_scores_are_those_of_the_textbook_loop(name, machine):
    made = sampler(name, machine=machine)
    for length in (PREFIX, PREFIX + 6):
        known = prompts(4, length, seed=length)
        x, scored = made.sample(4, seed=3, return_log_prob=True, **known)
        naive, expected = made.sample_naive(4, seed=3, return_log_prob=True, **known)
        assert torch.equal(x, naive)
        assert torch.equal(x[:, :length], known["known"][:, :length])
        torch.testing.assert_close(scored, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(scored, made.log_prob(x).double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_teacher_forcing_scores_the_elements_after_the_prefix(name):
    made, known = sampler(name), prompts(5, STEPS)
    state = made.advance(made.start(5, log_prob=True, **known), STEPS)
    logits = made.module(torch.cat([torch.zeros(5, 1, dtype=torch.int64), known["known"][:, :-1]], 1))
    every = logits.log_softmax(1).gather(1, known["known"][:, None])[:, 0, PREFIX:].sum(-1)
    torch.testing.assert_close(state.run.log_prob, every.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_sample_is_the_same_however_it_is_made(name, tmp_path):
    made, known = sampler(name), prompts(SAMPLES)
    whole, _ = check_however_made(made, tmp_path, **known)
    given = known["known"][:, :PREFIX]
    chunks = list(made.stream(batch=SAMPLES, steps=STEPS - PREFIX, chunk=4, seed=SEED, prompt=given))
    assert torch.equal(torch.cat(chunks, -1), whole[:, PREFIX:])


def test_the_whole_prefix_is_seen():
    """What the last element of the prefix is changes what the first positions are to all that follow."""
    made, known = sampler("prefix and the first input"), prompts(3, STEPS)
    before = made.log_prob(known["known"])
    known["known"][:, PREFIX - 1] = (known["known"][:, PREFIX - 1] + 1) % LEVELS
    state = made.advance(made.start(3, log_prob=True, **known), STEPS)
    assert not torch.allclose(state.run.log_prob, before.double(), rtol=1e-3)


class Strokes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.causal, self.out = nn.Conv1d(2, 8, 3, padding=1), nn.Conv1d(2, 8, 2), nn.Conv1d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        first = F.pad(self.wide(x[..., :PREFIX]).sum(-1, keepdim=True), (PREFIX - 1, x.shape[-1] - PREFIX))
        return self.out(torch.tanh(first + self.causal(F.pad(x, (1, 0)))))


@pytest.mark.parametrize("predicts", ["same", "next"])
def test_channels_and_values_that_are_no_levels(predicts):
    class Shifted(Strokes):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if predicts == "next" else F.pad(super().forward(x), (1, -1))

    made = fastgen.Sampler(built(Shifted), (2, 12), Gaussian(), "time", predicts=predicts, prefix=PREFIX, machine=FAST)
    known = torch.randn(3, 2, 12, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(12) < PREFIX).expand(3, 2, -1)
    x, scored = made.sample(3, seed=1, known=known, known_mask=mask, return_log_prob=True)
    torch.testing.assert_close(x, made.sample_naive(3, seed=1, known=known, known_mask=mask), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scored, made.log_prob(x).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kv", ["bfloat16", "int8"])
def test_keys_of_the_prefix_are_rounded_too(kv):
    made, known = sampler("prefix", kv=kv), prompts(4)
    assert made.explain().memory.keys < sampler("prefix").explain().memory.keys
    samples = [sampler("prefix", kv=kv, machine=machine).sample(4, seed=3, **known) for machine in MACHINES]
    assert all(torch.equal(samples[0], other) for other in samples)


# ---- what is refused


def test_sampling_without_the_prefix_is_refused():
    made = sampler("prefix")
    said = "known_mask must be True for the prefix of this sampler, the first 7 positions of every sample, got "
    for call in (made.sample, made.sample_naive, made.start):
        with pytest.raises(ValueError, match=said + "no known levels"):
            call(2)
        with pytest.raises(ValueError, match=said + "False for some of them"):
            call(2, **prompts(2, PREFIX - 1))
    with pytest.raises(ValueError, match=said):
        made.stream(batch=2, steps=4)
    with pytest.raises(ValueError, match=said):
        made.stream(batch=2, steps=4, prompt=torch.zeros(2, PREFIX - 1, dtype=torch.int64))


@pytest.mark.parametrize("seen", [PREFIX + 2, PREFIX + 5, STEPS])
def test_positions_that_look_beyond_the_prefix_are_refused(seen):
    with pytest.raises(NotCausalError, match="not causal for order 'time'"):
        compiled(decoder(prefix_lm(seen)), STEPS, prefix=PREFIX)


def test_without_the_argument_the_network_is_not_causal():
    with pytest.raises(NotCausalError, match="not causal for order 'time'"):
        compiled(decoder(prefix_lm(PREFIX)), STEPS)


def test_a_prefix_is_one_of_a_sequence():
    for prefix in (-1, STEPS, 2.5):
        with pytest.raises(ValueError, match="prefix must be"):
            compiled(decoder(prefix_lm(0)), STEPS, prefix=prefix)
    network = built(lambda: fastgen.nn.MaskedConv2d(1, LEVELS, 3, mask="A"))
    with pytest.raises(ValueError, match=r"prefix must be 0, or less than .* got 3 in order 'raster'"):
        fastgen.Sampler(network, (1, 4, 4), heads.Categorical(LEVELS), prefix=3)
