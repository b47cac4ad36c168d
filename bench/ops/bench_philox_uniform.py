"""Uniform noise for a batch of long streams: the compiled kernel against the same integers in plain PyTorch."""

from __future__ import annotations

import pytest
import torch

import fastgen
from fastgen.ops import philox_uniform


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.benchmark(group="philox_uniform [16, 4096], one thread")
def bench_philox_uniform(benchmark, backend):
    if backend == "cpu" and fastgen.extension_error:
        pytest.skip(fastgen.extension_error)
    arguments = (0, torch.arange(16), torch.arange(4096), 0, 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with fastgen.backend("reference"):
        expected = philox_uniform(*arguments)
    with fastgen.backend(backend):
        assert torch.equal(benchmark(philox_uniform, *arguments), expected)
    torch.set_num_threads(threads)
