"""Attention to contexts of any number of positions, from an example of one number of them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from fastgen.generate import heads
from fastgen.generate.files.tensor_file import read_tensor_file, write_tensor_file
from fastgen.generate.heads import Categorical
from tests.generate.compiled import FAST, MACHINES
from tests.generate.however_made import SAMPLES, SEED, check_however_made
from tests.generate.public_attention import HEADS, LEVELS, WIDTH, Translator
from tests.generate.seeded import built

STEPS, POSITIONS = 10, 7
SIZES = (1, 2, POSITIONS, POSITIONS + 1, 23)


class Captioner(nn.Module):
    """``nn.TransformerDecoder`` over features ``[N, S, WIDTH]``, with learned positions of up to 24 of them."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 24, batch_first=True, norm_first=True)
        self.embed, self.network, self.head = (
            nn.Embedding(LEVELS, WIDTH),
            nn.TransformerDecoder(layer, 2),
            nn.Linear(WIDTH, LEVELS),
        )
        self.place = nn.Embedding(24, WIDTH)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        memory = features + self.place(torch.arange(features.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.network(self.embed(x), memory, tgt_mask=mask)).transpose(1, 2)


class Windowed(nn.Module):
    """Self-attention to a window, cross-attention to tokens behind a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.source, self.head = (
            nn.Embedding(LEVELS, WIDTH),
            nn.Embedding(LEVELS, WIDTH),
            nn.Linear(WIDTH, LEVELS),
        )
        self.qkv, self.query, self.kv = (
            nn.Linear(WIDTH, 3 * WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 2 * WIDTH),
        )
        self.start = nn.Parameter(torch.randn(1, 1, WIDTH))

    def forward(self, x: Tensor, context: dict[str, Tensor]) -> Tensor:
        h, place = self.embed(x), torch.arange(x.shape[1])
        q, k, v = self.qkv(h).chunk(3, -1)
        apart = place[:, None] - place
        h = h + F.scaled_dot_product_attention(q, k, v, attn_mask=(apart >= 0) & (apart < 5))
        memory = self.source(context["tokens"]) + self.source(context["kinds"])
        memory = torch.cat([self.start.expand(len(x), -1, -1), memory], 1)
        k, v = self.kv(memory).chunk(2, -1)
        return self.head(h + F.scaled_dot_product_attention(self.query(h), k, v)).transpose(1, 2)


def tokens(count: int, positions: int, seed: int = 0) -> Tensor:
    return torch.randint(1, LEVELS - 1, (count, positions), generator=torch.Generator().manual_seed(seed))


def features(count: int, positions: int) -> Tensor:
    return torch.randn(count, positions, WIDTH, generator=torch.Generator().manual_seed(positions))


def pairs(count: int, positions: int) -> dict[str, Tensor]:
    return {"tokens": tokens(count, positions), "kinds": tokens(count, positions, 1)}


NETWORKS = {"translator": (Translator, tokens), "captioner": (Captioner, features), "windowed": (Windowed, pairs)}


def compiled(name: str, steps: int = STEPS, **options) -> fastgen.Sampler:
    make, context = NETWORKS[name]
    head = Categorical(LEVELS)
    return fastgen.Sampler(
        built(make), (steps,), head, "time", predicts="next", example_context=context(2, POSITIONS),
        **({"machine": FAST} | options),
    )  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", NETWORKS)
def test_samples_and_scores_are_the_modules_for_any_number_of_positions(name, machine):
    sampler, make = compiled(name, machine=machine), NETWORKS[name][1]
    for positions in SIZES:
        given = make(4, positions)
        x, scored = sampler.sample(4, seed=3, context=given, return_log_prob=True)
        assert torch.equal(x, sampler.sample_naive(4, seed=3, context=given))
        torch.testing.assert_close(scored, sampler.log_prob(x, context=given).double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_sample_is_the_same_however_it_is_made(name, tmp_path):
    sampler, make = compiled(name), NETWORKS[name][1]
    given = make(SAMPLES, 11)
    whole, _ = check_however_made(sampler, tmp_path, context=given)
    chunks = list(sampler.stream(batch=SAMPLES, steps=STEPS, chunk=3, seed=SEED, context=given))
    assert torch.equal(torch.cat(chunks, -1), whole)
    for other in (copy.copy(sampler), copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert torch.equal(other.sample(SAMPLES, seed=SEED, context=given), whole)


def test_a_long_event_takes_any_context():
    sampler, given = compiled("windowed", 200), pairs(2, 19)
    chunks = sampler.stream(batch=2, steps=200, chunk=70, seed=1, context=given)
    assert torch.equal(torch.cat(list(chunks), -1), sampler.sample(2, seed=1, context=given))


def test_refresh_takes_the_encoders_new_weights():
    sampler, given = compiled("translator"), tokens(4, 12)
    before = sampler.sample(4, seed=3, context=given)
    with torch.no_grad():
        for weight in sampler.module.network.encoder.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    sampler.refresh()
    after = sampler.sample(4, seed=3, context=given)
    assert torch.equal(after, sampler.sample_naive(4, seed=3, context=given))
    assert not torch.equal(after, before)


def test_the_example_is_what_is_explained():
    sampler = compiled("translator")
    assert sampler.explain().work.total < 2 * sampler.explain().work.parallel
    assert "sum over keys [0, end) of" in str(sampler.program)


# ---- what is refused


def test_no_positions_and_different_numbers_of_them_are_refused():
    sampler = compiled("windowed")
    with pytest.raises(ValueError, match=r"must have elements, got \[2, 0\]"):
        sampler.sample(2, context=pairs(2, 0))
    with pytest.raises(ValueError, match=r"leaf 1, must have shape \['N', 6\] with N = 2 or 1, got \[2, 5\]"):
        sampler.sample(2, context={"tokens": tokens(2, 6), "kinds": tokens(2, 5)})
    with pytest.raises(ValueError, match=r"must have shape \['N', 'any number'\] with N = 2 or 1, got \[2, 3, 1\]"):
        sampler.sample(2, context={"tokens": tokens(2, 3)[..., None], "kinds": tokens(2, 3)})


def test_more_positions_than_a_table_has_are_refused():
    with pytest.raises(ValueError, match="context"):
        compiled("captioner").sample(2, context=features(2, 25))


class Weighted(Captioner):
    """Divides what it reads by the square of the number of positions."""

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        return super().forward(x, features / features.shape[1] ** 2)


class First(Captioner):
    """Reads the first four positions only."""

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        seen = torch.where(torch.arange(features.shape[1]) < 4, 0.0, float("-inf")).expand(x.shape[1], -1)
        return self.head(self.network(self.embed(x), features, tgt_mask=mask, memory_mask=seen)).transpose(1, 2)


@pytest.mark.parametrize("kind", [Weighted, First])
def test_a_network_that_depends_on_the_number_otherwise_takes_the_examples_only(kind):
    head = heads.Categorical(LEVELS)
    sampler = fastgen.Sampler(
        built(kind), (STEPS,), head, "time", predicts="next", example_context=features(2, POSITIONS), machine=FAST
    )
    given = features(3, POSITIONS)
    assert torch.equal(sampler.sample(3, seed=1, context=given), sampler.sample_naive(3, seed=1, context=given))
    with pytest.raises(ValueError, match=r"got \[3, 8, 16\]; another number of positions is refused: "):
        sampler.sample(3, context=features(3, 8))


def test_a_file_whose_extents_are_wrong_is_refused(tmp_path):
    sampler = compiled("translator")
    sampler.save(tmp_path / "sampler")
    tensors, saved = read_tensor_file(tmp_path / "sampler", "program")
    calls = saved["context_network"]["calls"]

    def spoiled(part):
        if isinstance(part, dict) and "extent" in part:
            return {"extent": [0, 1 << 40]}
        if isinstance(part, list):
            return [spoiled(each) for each in part]
        return part

    network = saved["context_network"] | {"calls": [spoiled(call) for call in calls]}
    write_tensor_file(tmp_path / "sampler", "program", tensors, saved | {"context_network": network})
    with pytest.raises(ValueError, match="context_network cannot run"):
        fastgen.Sampler.load(tmp_path / "sampler")
    network = saved["context_network"] | {"free": [0, 5]}
    write_tensor_file(tmp_path / "sampler", "program", tensors, saved | {"context_network": network})
    with pytest.raises(ValueError, match="must follow a free dimension"):
        fastgen.Sampler.load(tmp_path / "sampler")
    for free in ([[0, 0]], [[3, 1]], "all"):
        context = saved["context"] | {"free": free}
        write_tensor_file(tmp_path / "sampler", "program", tensors, saved | {"context": context})
        with pytest.raises(ValueError, match="free dimension"):
            fastgen.Sampler.load(tmp_path / "sampler")
