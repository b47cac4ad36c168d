"""Features that whole rows and single steps read: which are computed twice, and that no sample changes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from fastgen.generate import heads
from fastgen.generate.compile import pipeline
from fastgen.generate.ir.instructions import PIXEL, ROW
from fastgen.generate.ir.verify_graph import verify
from tests.generate.compiled import case
from tests.generate.seeded import built


class LooksUp(nn.Module):
    """A convolution over the rows above and one over the pixels before, of embedded levels."""

    def __init__(self, deep: bool = False) -> None:
        super().__init__()
        self.embed, self.deep = nn.Embedding(3, 5), nn.Conv2d(5, 5, 1) if deep else nn.Identity()
        self.above, self.left = nn.Conv2d(5, 5, (2, 3)), nn.Conv2d(5, 5, (1, 2))
        self.last = nn.Conv2d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.deep(torch.tanh(self.embed(x[:, 0]).movedim(-1, 1)))
        above = self.above(F.pad(h, (1, 1, 2, -1)))
        left = self.left(F.pad(h, (2, -1)))
        return self.last(torch.tanh(above) + torch.tanh(left))


def made(shape: tuple[int, int, int], deep: bool = False, **options) -> fastgen.Sampler:
    return fastgen.Sampler(built(lambda: LooksUp(deep)), shape, heads.Categorical(3), threads=1, **options)


@pytest.mark.parametrize("deep", [False, True])
def test_samples_are_the_textbook_loops(deep):
    sampler = made((1, 5, 9), deep)
    assert torch.equal(sampler.sample(3, seed=1), sampler.sample_naive(3, seed=1))


def test_the_rows_stay_at_the_starts_of_rows():
    """The embedding has two instructions, one for rows and one for steps; the program does not grow with the image."""
    programs = [made(shape).program for shape in ((1, 5, 9), (1, 6, 13))]
    phases = [[(i.when, i.body.lanes) for i in program.computes] for program in programs]
    assert phases[0] == phases[1]
    table = next(s for s in programs[0].segments if s.kind == 1)
    lookups = [
        i.when
        for i in programs[0].computes
        if any(s.kind == table.kind for s in programs[0].segments[i.body.segment0 : i.body.segment1])
    ]
    assert sorted(lookups) == [ROW, PIXEL]


def test_the_graph_stays_sound(monkeypatch):
    names = []

    def checked(name, graph, draws):
        verify(graph, [piece for draw in draws for piece in draw.pieces])
        names.append((name, sum(node.kind == "computed" for node in graph.nodes)))

    monkeypatch.setattr(pipeline, "after_pass", checked)
    case("video_stacks").sampler()
    counts = dict(names)
    assert counts["compute_twice"] > counts["merge_sums"]


def test_what_one_schedule_suits_is_computed_once(monkeypatch):
    counts = {}
    monkeypatch.setattr(pipeline, "after_pass", lambda name, graph, draws: counts.update({name: len(graph.nodes)}))
    network = nn.Sequential(fastgen.nn.MaskedConv2d(1, 4, 3, mask="A"), nn.ReLU(), nn.Conv2d(4, 3, 1))
    fastgen.Sampler(network, (1, 5, 9), heads.Categorical(3))
    assert counts["compute_twice"] == counts["merge_sums"]
