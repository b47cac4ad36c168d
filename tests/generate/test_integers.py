"""Integers: the compiled network computes what PyTorch's integers are, of every width, or refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from fastgen.generate import CompileError, heads
from tests.generate.compiled import FAST, parameters_at

LEVELS = 256
STEPS = 24
HEAD = heads.Categorical(LEVELS, to_input="index")


def back(x: Tensor, steps: int) -> Tensor:
    return F.pad(x, (steps, 0))[:, : x.shape[1]]


class Integers(nn.Module):
    """Integer outputs, each in three bytes that float32 holds."""

    def __init__(self, *functions) -> None:
        super().__init__()
        self.functions = functions
        self.register_buffer("powers", torch.tensor([16777216, 65536, 256, 1]))

    def forward(self, x: Tensor) -> Tensor:
        values = torch.stack([f(self, x, back(x, 1), back(x, 2)).long() for f in self.functions], -1)
        return F.linear(values.float(), torch.eye(LEVELS)[:, : len(self.functions)]).transpose(1, 2)


def compiled(*functions, **options) -> fastgen.Sampler:
    options = {"head": HEAD, "order": "time", "predicts": "next", "machine": FAST, "threads": 1} | options
    return fastgen.Sampler(Integers(*functions).eval(), (STEPS,), **options)


def hashed(s: Integers, x: Tensor, base: int = 256) -> Tensor:
    return ((x * base + back(x, 1)) * base + back(x, 2)) * base + back(x, 3)


EXACT = {
    "hash of bytes": lambda s, x, y, z: hashed(s, x) % 1009,
    "hash of many bytes": lambda s, x, y, z: (hashed(s, x) * 65536 + y) % 65521,
    "hash with a large table": lambda s, x, y, z: hashed(s, x) % 9999991,
    "multiplicative hash": lambda s, x, y, z: (x * 1000003 + y * 7919 - z * 2654435761) % 1009,
    "hash by a sum": lambda s, x, y, z: (torch.stack([x, y, z, x], -1) * s.powers).sum(-1) % 1009,
    "hash of bits": lambda s, x, y, z: hashed(s, x) & 4095,
    "hash towards zero": lambda s, x, y, z: torch.fmod(hashed(s, x), 1009),
    "hash moved about": lambda s, x, y, z: back(hashed(s, x).reshape(x.shape[0], 1, -1).squeeze(1), 2) % 1009,
    "hash by shifts": lambda s, x, y, z: ((x << 20) + (y << 10) + z) % 8191,
    "remainders of negatives": lambda s, x, y, z: (x - 200) % 7 + (y - 200) % -7 + torch.fmod(z - 200, 7),
    "quotients of negatives": lambda s, x, y, z: (x - 128) // 7 + 1000 * torch.div(y - 128, -7, rounding_mode="trunc"),
    "quotient by a tensor": lambda s, x, y, z: (x - 128) // (y + 1) + 300 * ((z - 128) // -(y + 1)),
    "true quotient": lambda s, x, y, z: (x / (y + 1) * 64).long(),
    "power": lambda s, x, y, z: x**2 + (y % 16) ** 5,
    "and": lambda s, x, y, z: (x - 128) & y,
    "or": lambda s, x, y, z: (x - 128) | (y & 12),
    "xor": lambda s, x, y, z: x ^ (y * 256) ^ -z,
    "not": lambda s, x, y, z: ~x + (~y & 255),
    "shifts": lambda s, x, y, z: (x << 3) + ((y - 128) >> 2) + (1 << (z & 7)),
    "shift by a tensor": lambda s, x, y, z: (x * 8) >> (y & 3),
    "uint8 wraps": lambda s, x, y, z: x.to(torch.uint8) * 3 + y.to(torch.uint8),
    "uint8 below zero": lambda s, x, y, z: x.to(torch.uint8) - y.to(torch.uint8),
    "int8 wraps": lambda s, x, y, z: x.to(torch.int8) * y.to(torch.int8) - z.to(torch.int8),
    "int8 minus": lambda s, x, y, z: -x.to(torch.int8),
    "int8 abs": lambda s, x, y, z: x.to(torch.int8).abs(),
    "int16 wraps": lambda s, x, y, z: x.to(torch.int16) * 256 + y,
    "int32": lambda s, x, y, z: x.int() * y.int() + z,
    "narrow and wide": lambda s, x, y, z: x.to(torch.int8) + y * 1000,
    "bool sum": lambda s, x, y, z: (x > 100) + (y > 100),
    "bool product": lambda s, x, y, z: (x > 100) * (y > 100),
    "bool count": lambda s, x, y, z: torch.stack([x > 100, y > 100, z > 100], -1).sum(-1),
    "bool and int": lambda s, x, y, z: (x > 100) + y + (z > 100) * 5,
    "int and float": lambda s, x, y, z: (x * 0.7 + y).long(),
    "floats towards zero": lambda s, x, y, z: ((x - 128) * 0.3).int(),
    "float to uint8": lambda s, x, y, z: (x * 0.7).to(torch.uint8),
    "comparison": lambda s, x, y, z: (x * 60000 < y * 60000) + 2 * (x == y).long(),
    "sum": lambda s, x, y, z: torch.stack([x, y, z], -1).sum(-1),
    "cumsum": lambda s, x, y, z: torch.stack([x, y, z], -1).cumsum(-1)[..., 1],
    "max": lambda s, x, y, z: torch.maximum(x, y).clamp(10, 200) + torch.stack([x, z], -1).amin(-1),
    "index": lambda s, x, y, z: torch.arange(256).flip(0)[(x * y) % 256],
    "where": lambda s, x, y, z: torch.where(x > y, z, -x),
    "assigned": lambda s, x, y, z: torch.zeros_like(x).copy_(x * 0.7),
    "filled": lambda s, x, y, z: torch.full_like(x, 3) + x,
    "sign": lambda s, x, y, z: (x - y).sign() + (x - z).abs(),
}


def test_integers_are_exact():
    """Fault generation_04, and its kind."""
    sampler = compiled(*EXACT.values())
    levels = torch.randint(0, LEVELS, (32, STEPS), generator=torch.Generator().manual_seed(0))
    levels[0] = 255
    levels[1] = 0
    state = sampler.start(32, known=levels, known_mask=levels == levels)
    got = torch.stack([parameters_at(sampler, sampler.advance(state, 1)) for _ in range(STEPS)], 1)[:, 1:]
    with torch.no_grad():
        wanted = sampler.module(levels[:, :-1]).movedim(1, -1)
    assert not [name for i, name in enumerate(EXACT) if not torch.equal(got[..., i], wanted[..., i])]


REFUSED = {
    "no remainder follows": lambda s, x, y, z: hashed(s, x) // 7,
    "a product of two": lambda s, x, y, z: (x * 1000 * (y * 1000)) % 1009,
    "wraps in 64 bits": lambda s, x, y, z: (x * 6364136223846793005) % 1009,
    "wraps in 32 bits": lambda s, x, y, z: (x.int() * 16777619 * 256) % 1009,
    "a large remainder": lambda s, x, y, z: hashed(s, x) % 20000003,
    "exclusive or": lambda s, x, y, z: ((x * 1000003) ^ (y * 7919003)) % 1009,
    "becomes a float": lambda s, x, y, z: hashed(s, x) / 4294967296.0,
    "is compared": lambda s, x, y, z: hashed(s, x) < 1000000007,
    "a power": lambda s, x, y, z: x**4,
    "a large constant": lambda s, x, y, z: x % 1000000007,
    "a product of many": lambda s, x, y, z: torch.stack([x * 60000, y * 60000], -1).cumsum(-1)[..., 1],
}


@pytest.mark.parametrize("name", REFUSED)
def test_integers_that_float32_does_not_hold_are_refused(name):
    with pytest.raises(CompileError, match=r"integers .* computed at .*test_integers\.py.*2\^24"):
        compiled(REFUSED[name])


def test_integers_of_unknown_size_must_be_clamped():
    head = heads.Gaussian(mixtures=1)

    class Steps(nn.Module):
        def __init__(self, clamped: bool) -> None:
            super().__init__()
            self.clamped = clamped

        def forward(self, x: Tensor) -> Tensor:
            x = x.clamp(-100, 100) if self.clamped else x
            count = x.long() * 3
            return F.linear(count[..., None].float(), torch.eye(2)[:, :1]).transpose(1, 2)

    with pytest.raises(CompileError, match=r"integers of unknown size.*clamp"):
        fastgen.Sampler(Steps(False), (8,), head, order="time", predicts="next")
    sampler = fastgen.Sampler(Steps(True), (8,), head, order="time", predicts="next")
    assert torch.equal(sampler.sample(3), sampler.sample_naive(3))


def test_floats_that_uint8_does_not_hold_are_refused():
    with pytest.raises(CompileError, match=r"floats in .* torch.uint8 .*clamp them first"):
        compiled(lambda s, x, y, z: (x * 1.5).to(torch.uint8))


class OfContext(nn.Module):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return F.linear(((x + c[:, None]) % 7)[..., None].float(), torch.eye(LEVELS)[:, :1]).transpose(1, 2)


def test_integers_of_a_context_are_bounded():
    context = torch.tensor([5])
    sampler = fastgen.Sampler(OfContext(), (8,), HEAD, order="time", predicts="next", example_context=context)
    assert torch.equal(sampler.sample(2, context=context), sampler.sample_naive(2, context=context))
    with pytest.raises(ValueError, match="context must hold integers of at most 1048576"):
        sampler.sample(2, context=torch.tensor([2**24 + 1]))


def test_new_powers_of_a_hash_are_noticed():
    sampler = compiled(EXACT["hash by a sum"])
    sampler.refresh()
    sampler.module.powers[0] = 5
    with pytest.raises(CompileError, match="constant changed"):
        sampler.refresh()
