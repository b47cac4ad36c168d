"""Measures time and memory of compiling a sampler, in a fresh process, where nothing else has used memory."""

from __future__ import annotations

import gc
import re
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

import fastgen
from fastgen.generate.verification.self_check import self_check

_MIB = 1 << 20
_BATCH = 32


def measure(name: str, config: dict) -> dict[str, float]:
    """Compiles a sampler of a model in a fresh process; see ``_measure``."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, name, config).result()


def _measure(name: str, config: dict) -> dict[str, float]:
    """Returns the seconds of compiling, the self-check (run again), saving and loading, and the memory.

    The memory is the peak, and that of a sampler, as explained and as it is.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = fastgen.create_model(name, **config).eval()
    before = _memory("VmHWM")
    begin = time.perf_counter()
    sampler = model.sampler()
    compiled = time.perf_counter()
    peak = _memory("VmHWM")
    checking = time.perf_counter()
    self_check(sampler)
    checked = time.perf_counter()
    explained = sampler.explain().memory
    expected = sampler.sample(2, seed=0) if sampler.steps < 10_000 else next(iter(sampler.stream(2, chunk=20, seed=0)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sampler.safetensors"
        saving = time.perf_counter()
        sampler.save(path)
        saved = time.perf_counter()
        size = path.stat().st_size
        del sampler, model
        gc.collect()
        loading = time.perf_counter()
        loaded = fastgen.Sampler.load(path)
        loaded_at = time.perf_counter()
    again = loaded.sample(2, seed=0) if loaded.steps < 10_000 else next(iter(loaded.stream(2, chunk=20, seed=0)))
    assert torch.equal(again, expected), "the loaded sampler generates something else"
    return {
        "compile, s": compiled - begin,
        "of which the self-check, s": checked - checking,
        "the self-check, % of the rest": 100 * (checked - checking) / (compiled - begin - (checked - checking)),
        "peak memory of compiling, MiB": peak / _MIB,
        "of which compiling added, MiB": (peak - before) / _MIB,
        "save, s": saved - saving,
        "load, s": loaded_at - loading,
        "file, MiB": size / _MIB,
        "shared memory explained, MiB": explained.shared / _MIB,
        "shared memory measured, MiB": _shared(loaded) / _MIB,
        "memory a sample explained, KiB": explained.per_sample / 1024,
        "memory a sample measured, KiB": _per_sample(loaded) / 1024,
    }


def _shared(sampler: fastgen.Sampler) -> float:
    """Returns the bytes that a sampler and its machine hold whatever they generate."""
    program = sampler.program
    canonical = program.weights.nbytes + program.constants.nbytes
    return canonical + sampler.machine.memory() + program.constants.nbytes


def _per_sample(sampler: fastgen.Sampler) -> float:
    """Returns the bytes of state and contexts of one sample of a batch, without its levels."""
    state = sampler.start(_BATCH, seed=0)
    return sum(t.nbytes for t in (state.run.state, *state.run.contexts)) / _BATCH


def _memory(field: str) -> int:
    """Returns bytes from the process's status; VmHWM is the peak of resident memory."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB$", status.read_text(), re.MULTILINE)[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
