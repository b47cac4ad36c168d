"""Sorting, the greatest, boundaries and computed places: the sampler's numbers are PyTorch's, ties and NaN included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from fastgen.generate import UnsupportedOperator
from fastgen.generate.heads import Categorical, Gaussian
from tests.generate.compiled import FAST
from tests.generate.seeded import built

CHANNELS, STEPS, LEVELS = 6, 12, 5
EDGES = torch.tensor([-1.0, -0.4, 0.0, 0.0, 0.4, 1.0])
TABLE = torch.linspace(-2, 2, 7 * 4).sin().reshape(7, 4)


def bags(h: Tensor, mode: str) -> Tensor:
    rows = (h * 3).long().clamp(0, 6).transpose(1, 2).reshape(-1, CHANNELS)
    return F.embedding_bag(rows, TABLE, mode=mode).reshape(len(h), -1, 4).transpose(1, 2)


def masked(h: Tensor) -> Tensor:
    out = h.clone()
    out[h > 0.2] = 0.5
    return out


OPERATORS = {
    "sort": lambda h: h.sort(1).values,
    "sort down": lambda h: h.sort(1, descending=True).values,
    "sort stable": lambda h: h.sort(dim=1, stable=True).indices.float(),
    "sort stable down": lambda h: h.sort(dim=1, stable=True, descending=True).indices.float(),
    "argsort": lambda h: torch.argsort(h, dim=1, stable=True).float(),
    "topk": lambda h: h.topk(3, 1).values,
    "topk smallest": lambda h: h.topk(2, 1, largest=False).values,
    "topk mask": lambda h: h.masked_fill(h < h.topk(3, 1).values[:, -1:], -1.0),
    "kthvalue": lambda h: h.kthvalue(4, 1, keepdim=True).values,
    "kthvalue squeezed": lambda h: h.kthvalue(2, 1).values[:, None],
    "median": lambda h: h.median(1, keepdim=True).values,
    "median of five": lambda h: h[:, :5].median(1).values[:, None],
    "bucketize": lambda h: torch.bucketize(h, EDGES).float(),
    "bucketize right": lambda h: torch.bucketize(h, EDGES, right=True).float(),
    "bucketize nothing": lambda h: torch.bucketize(h, EDGES[:0]).float() + h,
    "searchsorted": lambda h: torch.searchsorted(EDGES, h).float(),
    "searchsorted right": lambda h: torch.searchsorted(EDGES, h, side="right").float(),
    "searchsorted sorter": lambda h: torch.searchsorted(EDGES.flip(0), h, sorter=torch.arange(6).flip(0)).float(),
    "gather": lambda h: h.gather(1, h.argmax(1, keepdim=True)),
    "gather several": lambda h: h.gather(1, torch.argsort(h, dim=1, stable=True)[:, 1:4]),
    "assignment by mask": masked,
    "index_put": lambda h: h.index_put((h < 0,), torch.tensor(0.25)),
    "lookup of a bucket": lambda h: TABLE[torch.bucketize(h[:, 0], EDGES)].transpose(1, 2),
}
CLOSE = {
    "embedding_bag": lambda h: bags(h, "sum"),
    "embedding_bag mean": lambda h: bags(h, "mean"),
    "embedding_bag max": lambda h: bags(h, "max"),
    "cumprod": lambda h: h.cumprod(1),
    "cumprod over time": lambda h: h.tanh().cumprod(2),
    "logcumsumexp": lambda h: h.logcumsumexp(1),
    "logcumsumexp over time": lambda h: h.logcumsumexp(2),
    "cummax": lambda h: h.cummax(1).values,
    "cummin over time": lambda h: h.cummin(2).values,
    "norm 1": lambda h: h.norm(1, dim=1, keepdim=True),
    "norm inf": lambda h: torch.linalg.vector_norm(h, float("inf"), 1, keepdim=True),
}


class Behind(nn.Module):
    """An operator behind a causal convolution; its numbers are the means of a Gaussian head."""

    def __init__(self, operator, rounded: bool) -> None:
        super().__init__()
        self.operator, self.rounded, self.conv = operator, rounded, nn.Conv1d(1, CHANNELS, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(F.pad(x, (2, -1)))
        if self.rounded:  # with many ties
            h = torch.floor(h * 2) / 2
        means = self.operator(h).sum(1, keepdim=True)
        return torch.cat([means, torch.zeros_like(means)], 1)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("name", [*OPERATORS, *CLOSE])
def test_an_operator_computes_what_pytorch_computes(name, rounded):
    module = built(lambda: Behind((OPERATORS | CLOSE)[name], rounded), gain=3.0)
    sampler = fastgen.Sampler(module, (1, STEPS), Gaussian(), "time", machine=FAST)
    values = torch.randn(16, 1, STEPS, generator=torch.Generator().manual_seed(0)) * 0.7
    known = torch.ones_like(values, dtype=torch.bool)
    _, found = sampler.sample(16, known=values, known_mask=known, return_log_prob=True)
    torch.testing.assert_close(found.float(), sampler.log_prob(values).float(), rtol=1e-5, atol=1e-4)


class Numbers(nn.Module):
    """An operator over channels made of levels, whose numbers are the logits; the fed values are the table's."""

    def __init__(self, operator, table: Tensor) -> None:
        super().__init__()
        self.operator = operator
        self.register_buffer("table", table)

    def forward(self, x: Tensor) -> Tensor:
        moved = F.pad(x, (1, 0))[:, :-1]
        h = F.embedding(moved, self.table).transpose(1, 2)
        h = torch.where(h.abs() == 9, torch.copysign(torch.full_like(h, float("inf")), h), h)
        h = self.operator(h)
        return torch.where(h.isnan(), 7.0, h.clamp(-9, 9))


SPECIAL = torch.tensor([[0.0, -0.0, 1.0], [9.0, 1.0, 1.0], [-9.0, 9.0, 2.0], [2.0, -1.0, -2.0]])


@pytest.mark.parametrize(
    "name", ["sort", "sort down", "sort stable", "sort stable down", "bucketize", "bucketize right"]
)
def test_infinities_and_ties_are_ordered_as_pytorch_orders_them(name):
    module = Numbers(OPERATORS[name], SPECIAL)
    sampler = fastgen.Sampler(module, (STEPS,), Categorical(3), "time", machine=FAST)
    assert torch.equal(sampler.sample(32, seed=0), sampler.sample_naive(32, seed=0))


class WithNan(Numbers):
    def forward(self, x: Tensor) -> Tensor:
        moved = F.pad(x, (1, 0))[:, :-1]
        h = F.embedding(moved, self.table).transpose(1, 2)
        h = torch.where(h > 1.5, torch.log(h - 9), h)  # NaN
        h = self.operator(h)
        return torch.where(h != h, 7.0, h)


@pytest.mark.parametrize(
    "name", ["sort", "sort down", "sort stable", "sort stable down", "kthvalue", "median", "bucketize"]
)
def test_nan_is_greater_than_all_numbers(name):
    operator = {"kthvalue": lambda h: h.kthvalue(3, 1, keepdim=True).values.expand_as(h)}.get(name, OPERATORS[name])
    module = WithNan(lambda h: operator(h).expand_as(h), torch.tensor([[0.0, 2, 1], [2, 1, 2], [1, -1, 0], [2, 2, 2]]))
    sampler = fastgen.Sampler(module, (STEPS,), Categorical(3), "time", machine=FAST)
    assert torch.equal(sampler.sample(32, seed=0), sampler.sample_naive(32, seed=0))


@pytest.mark.parametrize(
    ("operator", "said"),
    [
        (lambda h: h.topk(2, 1).indices.float(), r"result 1 of operator aten\.topk.* among equal elements"),
        (lambda h: h.sort(1).indices.float(), r"result 1 of operator aten\.sort.*stable=True"),
        (
            lambda h: h.repeat(1, 11, 1).sort(1).values,
            r"an order among 66 elements has a rule for at most 64, at .*thres",
        ),
        (lambda h: torch.bucketize(h, EDGES.flip(0)).float(), "boundaries that are not sorted has no rule.*Sort the"),
        (lambda h: torch.searchsorted(EDGES.expand(2, CHANNELS, 6).contiguous(), h).float(), "one line of boundaries"),
        (lambda h: torch.index_select(h, 2, h.argmax(1)[0]), r"places that depend on the input.*torch\.gather"),
        (lambda h: h.index_add(1, torch.tensor([0, 0]), h[:, :2]), "accumulates has no rule.*matrix product"),
    ],
)
def test_what_has_no_rule_is_said_with_what_to_do(operator, said):
    module = built(lambda: Behind(operator, False))
    with pytest.raises(UnsupportedOperator, match=rf"(?s){said}") as caught:
        fastgen.Sampler(module, (1, STEPS), Gaussian(), "time", machine=FAST)
    assert "test_ordering.py" in str(caught.value)


def test_boundaries_that_are_learned_may_move_but_stay_sorted():
    class Buckets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.edges, self.out = nn.Parameter(EDGES.clone()), nn.Conv1d(1, LEVELS, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.bucketize(F.pad(x, (1, -1)), self.edges).float()[:, None])

    module = built(Buckets)
    sampler = fastgen.Sampler(module, (STEPS,), Categorical(LEVELS, to_input="symmetric"), "time", machine=FAST)
    with torch.no_grad():
        module.edges += 0.3
    sampler.refresh()
    assert torch.equal(sampler.sample(8), sampler.sample_naive(8))
    with torch.no_grad():
        module.edges.copy_(module.edges.flip(0))
    with pytest.raises(ValueError, match="a constant changed"):
        sampler.refresh()
