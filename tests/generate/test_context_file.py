"""A saved sampler keeps its context network as data: nothing but known operators, checked before they run."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen.generate.files.context_file import read_network, write_network
from tests.generate.compiled import FAST
from tests.generate.seeded import built
from tests.generate.test_context_network import FRAMES, MEL, Conditioned, compiled, mel, sampler


class Chosen(nn.Module):
    """Channels by their numbers, and the greatest channel's number as an index."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.chosen = nn.Embedding(MEL, MEL), torch.tensor([3, 1, 2])

    def forward(self, mel: Tensor) -> Tensor:
        chosen = mel[:, self.chosen].cumsum(2).amax(2)
        return torch.cat([chosen, self.embed(mel.amax(2).argmax(1))], 1)[..., None]


def test_lookups_are_exact_and_saved(tmp_path):
    made = compiled(built(lambda: Conditioned(Chosen())))
    drawn = made.sample(3, seed=2, context=mel(3))
    assert torch.equal(drawn, made.sample_naive(3, seed=2, context=mel(3)))
    made.save(tmp_path / "sampler")
    loaded = fastgen.Sampler.load(tmp_path / "sampler", machine=FAST)
    assert torch.equal(loaded.sample(3, seed=2, context=mel(3)), drawn)


LEAVES = [torch.zeros(1, MEL, FRAMES)]


@pytest.mark.parametrize("name", ["lstm", "gru, frames first", "attention", "beside frames"])
def test_a_saved_sampler_keeps_its_context_network(name, tmp_path):
    made = sampler(name)
    made.save(tmp_path / "sampler")
    loaded = fastgen.Sampler.load(tmp_path / "sampler", machine=FAST)
    assert torch.equal(loaded.sample(3, seed=2, context=mel(3)), made.sample(3, seed=2, context=mel(3)))
    assert "PyTorch runs" in str(loaded.explain())
    state = made.advance(made.start(2, context=mel(2)), 3)
    state.save(tmp_path / "state")
    assert torch.equal(loaded.load_state(tmp_path / "state").levels, state.levels)


def written() -> tuple[dict, dict]:
    config, tensors = write_network(sampler("gru").compiled.context_network)
    return copy.deepcopy(config), tensors


def broken(config: dict, how: str) -> None:
    call = config["calls"][0]
    if how == "operator that reads files":
        call[1:3] = ["from_file.default", ["/etc/passwd"]]
    if how == "operator that writes":
        call[1] = "add_.Tensor"
    if how == "operator with an out argument":
        call[1] = "add.out"
    if how == "huge result":
        call[1:] = ["new_zeros.default", [{"value": config["inputs"][0]}, [1 << 20, 1 << 20]], {"options": {}}]
    if how == "attribute":
        call[1] = "__class__.__init__"
    if how == "value that is not there":
        call[2] = [{"value": "none"}]
    if how == "getitem of a name":
        call[1:3] = ["getitem", [{"value": config["inputs"][0]}, "__class__"]]
    if how == "no list":
        config["calls"] = "calls"
    if how == "result that is not there":
        config["results"][0][0] = "none"
    if how == "dimension out of range":
        config["results"][0][1] = 7
    if how == "names twice":
        config["tensors"][0] = config["inputs"][0]
    if how == "argument of no kind":
        call[2] = [{"module": "os"}]


@pytest.mark.parametrize("how", [
    "operator that reads files", "operator that writes", "operator with an out argument", "huge result", "attribute",
    "value that is not there", "getitem of a name", "no list", "result that is not there", "dimension out of range",
    "names twice", "argument of no kind",
])  # fmt: skip
def test_a_crafted_context_network_is_refused_before_it_runs(how):
    config, tensors = written()
    read_network(copy.deepcopy(config), tensors, LEAVES)
    broken(config, how)
    with pytest.raises(ValueError, match="context_network"):
        read_network(config, tensors, LEAVES)
