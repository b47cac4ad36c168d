"""The law of samples: bitwise the same, however they are made."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

import fastgen
from tests.generate.compiled import FAST

SAMPLES, SEED = 7, 5
"""Contexts and known elements have so many rows."""


def check_however_made(sampler: fastgen.Sampler, folder: Path, **options) -> tuple[Tensor, fastgen.Sampler]:
    """Checks a sample of its own, on two threads, in several calls, forked, and after saving state and sampler.

    ``options`` are those of ``sample``. Returns the samples, and the sampler that was loaded again.
    """
    whole = sampler.sample(SAMPLES, seed=SEED, **options)
    row = tree_map_only(Tensor, lambda given: given[3:4], options)
    alone = sampler.start(1, seed=SEED, first_sample=3, **row)
    assert torch.equal(sampler.advance(alone, sampler.steps).levels, whole[3:4])
    assert torch.equal(sampler.sample(SAMPLES, seed=SEED, threads=2, **options), whole)
    state = sampler.start(SAMPLES, seed=SEED, **options)
    for steps in (1, 4, 2):
        sampler.advance(state, steps)
    state.save(folder / "state")
    fork = state.fork([2, 5], same_noise=True)
    sampler.save(folder / "sampler")
    loaded = fastgen.Sampler.load(folder / "sampler", machine=FAST)
    assert torch.equal(sampler.advance(state, sampler.steps).levels, whole)
    assert torch.equal(sampler.advance(fork, sampler.steps).levels, whole[[2, 5]])
    assert torch.equal(loaded.sample(SAMPLES, seed=SEED, **options), whole)
    assert torch.equal(loaded.advance(loaded.load_state(folder / "state"), sampler.steps).levels, whole)
    return whole, loaded
