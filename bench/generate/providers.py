"""The compiled sampler, and torch.compile, as providers."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable

import torch

import fastgen

from ..suite.interleave import Provider
from .floors import floor_of

MODES = ("default", "max-autotune-no-cudagraphs")
"""Modes of torch.compile; "reduce-overhead" and "max-autotune" are these two with CUDA graphs, which a CPU lacks."""


def say(text: str) -> None:
    """Prints progress; pytest shows it with ``-s``."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def images(sampler: fastgen.Sampler, batch: int, threads: int) -> Provider:
    """Provider of whole images; a unit is an image."""
    name = "fastgen" if sampler.weights == "float32" else f"fastgen {sampler.weights}"
    whole = floor_of(sampler.program, sampler.weights, batch, threads)
    return Provider(
        name,
        functools.partial(sampler.sample, batch, seed=0, threads=threads),
        units=batch,
        threads=1,
        machine_threads=threads,
        floor=lambda: whole() / batch,
    )


def stream(sampler: fastgen.Sampler, batch: int, threads: int, steps: int) -> Provider:
    """Provider of an endless sequence, ``steps`` at a time; a unit is a sample of one of the ``batch`` sequences."""
    chunks = iter(())

    def advance() -> None:
        nonlocal chunks
        chunk = next(chunks, None)
        if chunk is None:
            chunks = sampler.stream(batch, chunk=steps, seed=0, threads=threads)
            next(chunks)

    name = "fastgen" if sampler.weights == "float32" else f"fastgen {sampler.weights}"
    whole = floor_of(sampler.program, sampler.weights, batch, threads)
    return Provider(
        name, advance, units=batch * steps, threads=1, machine_threads=threads, floor=lambda: whole() / batch
    )


def compiled(function: Callable, mode: str, *example) -> Callable:
    """Returns ``torch.compile`` in a mode, compiled (and tuned) by two calls with the example."""
    begin = time.perf_counter()
    result = torch.compile(function, mode=mode, fullgraph=True, dynamic=False)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for _ in range(2):
            result(*example)
    say(f"torch.compile, {mode}: {time.perf_counter() - begin:.0f} s")
    return result
