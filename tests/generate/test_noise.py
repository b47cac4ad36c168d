"""The noise of generation: a pure function of its coordinates, uniform, and never 0 or 1."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastgen.generate import noise
from fastgen.reference.philox_uniform import philox4x32_10

KNOWN_ANSWERS = [  # of the Random123 distribution: counter, key, output
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
SAMPLES = st.integers(0, 2**48 - 1)
POSITIONS = st.integers(0, 2**48 - 1)
FIELDS = st.integers(0, 2**16 - 1)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, answer):
    words = philox4x32_10(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(map(int, words)) == answer


@given(st.integers(0, 2**63 - 1), SAMPLES, POSITIONS, FIELDS, FIELDS)
def test_packing(seed, sample, position, channel, draw):
    """The documented packing, in Python's integers."""
    low, high = (1 << 32) - 1, (1 << 16) - 1
    counter = (
        position & low,
        position >> 32 & high | channel << 16,
        seed >> 32,
        sample >> 32 & high | draw << 16,
    )
    words = philox4x32_10(tuple(map(torch.tensor, counter)), (torch.tensor(seed & low), torch.tensor(sample & low)))
    k = (int(words[1]) << 32 | int(words[0])) >> 12
    value = noise.uniform(seed, torch.tensor([sample]), position, channel, draw)
    assert value.dtype == torch.float64
    assert value.tolist() == [(2 * k + 1) / 2**53]
    assert 0 < value < 1


@given(st.lists(SAMPLES, min_size=1, max_size=5), st.lists(POSITIONS, min_size=1, max_size=5))
def test_a_number_does_not_depend_on_what_is_drawn_with_it(samples, positions):
    together = noise.uniform(3, torch.tensor(samples), torch.tensor(positions), 2, 1)
    apart = [[noise.uniform(3, torch.tensor([s]), p, 2, 1).item() for p in positions] for s in samples]
    assert together.tolist() == apart


def test_channels_count_from_channel0():
    samples = torch.arange(3)
    of_draw = noise.Noise(5, samples, position=9, channel0=4).uniform(2, 1)
    assert torch.equal(of_draw, noise.uniform(5, samples, 9, 6, 1))


def test_every_coordinate_matters():
    here = (1, torch.tensor([1]), 1, 1, 1)
    values = {noise.uniform(*here).item()}
    for index in range(5):
        there = list(here)
        there[index] = there[index] + 1
        values.add(noise.uniform(*there).item())
    assert len(values) == 6


def test_uniform():
    """The empirical cdf of n numbers stays within the Kolmogorov-Smirnov distance that chance exceeds once in 10^6."""
    values = noise.uniform(0, torch.arange(200), torch.arange(500), 0, 0).flatten().sort().values
    n = len(values)
    ideal = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    assert (values - ideal).abs().max() + 0.5 / n < math.sqrt(math.log(2e6) / (2 * n))


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match=r"seed must be 0 or more.*, got -1"):
        noise.uniform(-1, torch.tensor([0]), 0, 0, 0)
