"""The input is what the network takes: integers where it looks them up, levels as floats otherwise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from fastgen.generate import CompileError, heads
from tests.generate.compiled import FAST
from tests.generate.seeded import built

LEVELS = 5


class Convolution(nn.Module):
    """Reads ``prepare(x)``, one channel of floats or ``LEVELS`` of them."""

    def __init__(self, prepare, channels: int = 1) -> None:
        super().__init__()
        self.prepare, self.conv = prepare, nn.Conv1d(channels, LEVELS, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.prepare(x)
        return self.conv(F.pad(h if h.dim() == 3 else h[:, None], (2, -1)))


class Embedded(nn.Module):
    def __init__(self, cast: bool) -> None:
        super().__init__()
        self.embed, self.cast = nn.Embedding(LEVELS, LEVELS), cast

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.embed(x.long() if self.cast else x).transpose(1, 2), (1, -1))


NETWORKS = {
    "embedding": (lambda: Embedded(cast=False), "index"),
    "cast embedding": (lambda: Embedded(cast=True), "index"),
    "one_hot": (lambda: Convolution(lambda x: F.one_hot(x, LEVELS).float().transpose(1, 2), LEVELS), "index"),
    "cast one_hot": (lambda: Convolution(lambda x: F.one_hot(x.long(), LEVELS).mT * 1.0, LEVELS), "index"),
    "floats": (lambda: Convolution(lambda x: x * 2), "float"),
    "cast floats": (lambda: Convolution(lambda x: x.float() / 4), "float"),
}


@pytest.mark.parametrize("head", [heads.Categorical(LEVELS), heads.Bernoulli()], ids=["categorical", "bernoulli"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gets_what_it_takes(name, head):
    make, expected = NETWORKS[name]
    adapter = (lambda output: output[:, 1]) if head.levels == 2 else None
    compiled = fastgen.Sampler(built(make), (9,), head, "time", adapter=adapter, machine=FAST)
    assert compiled.head.to_input_name == expected
    assert head.to_input_name is None
    assert f"(to_input='{expected}')" in str(compiled.explain())
    assert torch.equal(compiled.sample(4, seed=1), compiled.sample_naive(4, seed=1))


def test_floats_by_name_are_the_levels():
    levels = torch.tensor([[0, 3, 4]])
    fed = heads.Categorical(LEVELS, to_input="float").to_input(levels)
    assert fed.dtype == torch.float32
    assert fed.tolist() == [[0.0, 3.0, 4.0]]


def test_a_newcomers_image_network_compiles_with_the_default_head():
    """Fault generation_19_messages, "int64 input"."""
    compiled = fastgen.Sampler(built(lambda: Above()), (1, 4, 4), heads.Bernoulli(), machine=FAST)
    assert compiled.head.to_input_name == "float"
    assert torch.equal(compiled.sample(4, seed=1), compiled.sample_naive(4, seed=1))


class Above(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x[:, :, :-1], (0, 0, 1, 0)))


def test_a_saved_sampler_keeps_the_input_that_was_chosen(tmp_path):
    compiled = fastgen.Sampler(built(NETWORKS["floats"][0]), (9,), heads.Categorical(LEVELS), "time", machine=FAST)
    compiled.save(tmp_path / "sampler")
    loaded = fastgen.Sampler.load(tmp_path / "sampler", machine=FAST)
    assert loaded.head.to_input_name == "float"
    assert torch.equal(loaded.sample(4, seed=1), compiled.sample(4, seed=1))


def test_a_network_that_takes_neither_is_told_both_reasons():
    with pytest.raises(CompileError, match=r"takes neither floats nor integers \[2, 9\].*Given floats: .*integers: "):
        fastgen.Sampler(nn.Conv2d(3, LEVELS, 1), (9,), heads.Categorical(LEVELS), "time", machine=FAST)


@pytest.mark.parametrize(
    ("name", "to_input", "said"),
    [
        (
            "floats",
            "index",
            r"feeds integers \(to_input='index'\) and the network takes floats: pass to_input=\"float\",",
        ),
        (
            "embedding",
            "unit",
            r"feeds floats \(to_input='unit'\) and the network takes integers: pass to_input=\"index\"",
        ),
    ],
)
def test_the_wrong_kind_of_input_is_told_the_right_one(name, to_input, said):
    with pytest.raises(CompileError, match=said):
        fastgen.Sampler(built(NETWORKS[name][0]), (9,), heads.Categorical(LEVELS, to_input), "time", machine=FAST)


def test_a_continuous_head_feeds_floats():
    compiled = fastgen.Sampler(built(lambda: Two()), (6,), heads.Gaussian(), "time", machine=FAST)
    assert "values as they are" in str(compiled.explain())
    assert torch.equal(compiled.sample(2, seed=1), compiled.sample_naive(2, seed=1))


class Two(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = F.pad(x, (1, -1))
        return torch.stack([h, -1 - h.abs()], 1)
