"""What is left after memory or threads ran out, and Python threads that share a sampler or a state."""

from __future__ import annotations

import copy
import os
import resource
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.generate.small_networks import pointwise

ROOT = str(Path(__file__).parents[2])
pytestmark = [
    pytest.mark.needs_extension,
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]
limits = pytest.mark.skipif(sys.platform != "linux", reason="an address space can be limited on Linux only")


def limit_memory(more: int) -> None:
    """No more than so many bytes beyond what is in use; -1: as much as there is."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard if more < 0 else used + more, hard))


def in_new_process(call: str) -> tuple[int, str]:
    """What a function of this module ends with where every large block of memory is asked of the system."""
    command = [sys.executable, "-c", f"from tests.generate import test_threads; test_threads.{call}"]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment)
    return done.returncode, done.stderr


def sample_until_memory_runs_out(threads: int) -> None:
    sampler = pointwise(8, 1 << 16, 2, verify=False)
    expected = copy.deepcopy(sampler).sample(2, seed=1)
    refused, one = [], copy.deepcopy(sampler)
    for allowance in range(0, 64 << 20, 1 << 16):
        limit_memory(allowance)
        try:
            one.sample(2, seed=1, threads=threads)
        except (MemoryError, RuntimeError) as error:  # the latter of torch, for its tensors, or of a thread
            refused.append(f"{type(error).__name__}: {error}")
        finally:
            limit_memory(-1)
        if refused and refused[-1].startswith("MemoryError"):
            break
    else:
        raise AssertionError(f"the machine never ran out of memory: {refused}")
    allowed = ("MemoryError", "DefaultCPUAllocator", "the system refuses another thread")
    assert [message for message in refused if not any(text in message for text in allowed)] == []
    assert torch.equal(one.sample(2, seed=1, threads=threads), expected)


@limits
@pytest.mark.parametrize("threads", [1, 3])
def test_sampling_goes_on_after_memory_ran_out(threads):
    """faults/robustness_retry_after_memory_error: the call after a MemoryError found half a team of threads."""
    assert in_new_process(f"sample_until_memory_runs_out({threads})") == (0, "")


def ask_for_threads_that_cannot_be_had() -> None:
    sampler = copy.deepcopy(pointwise())
    expected = sampler.sample(2, seed=1)
    limit_memory(100 << 20)
    with pytest.raises(RuntimeError, match=r"threads must be at most \d+ here, got 300: the system refuses another"):
        sampler.sample(2, threads=300)
    limit_memory(-1)
    for threads in (3, 1):
        assert torch.equal(sampler.sample(2, seed=1, threads=threads), expected)


@limits
def test_threads_that_cannot_be_had_are_an_error():
    """faults/robustness_threads_abort: std::terminate"""
    assert in_new_process("ask_for_threads_that_cannot_be_had()") == (0, "")


@pytest.mark.parametrize("threads", [1, 2])
def test_python_threads_share_a_sampler(threads):
    sampler = pointwise()
    expected = [sampler.sample(3, seed=seed) for seed in range(20)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: sampler.sample(3, seed=seed, threads=threads), range(20)))
    assert all(map(torch.equal, found, expected))


def test_a_refresh_waits_for_the_thread_that_samples():
    sampler = copy.deepcopy(pointwise())
    before = sampler.sample(400)
    other = copy.deepcopy(sampler)
    with torch.no_grad():
        sampler.module.head.weight.mul_(-3)
        other.module.head.weight.mul_(-3)
    after, stop, found = other.refresh().sample(400), threading.Event(), []

    def sample_on() -> None:
        while not stop.is_set():
            found.append(sampler.sample(400))

    thread = threading.Thread(target=sample_on)
    thread.start()
    while not found:
        pass
    sampler.refresh()
    stop.set()
    thread.join()
    assert all(torch.equal(one, before) or torch.equal(one, after) for one in found)
    assert torch.equal(sampler.sample(400), after)


def test_python_threads_that_share_a_state_are_refused_or_take_turns():
    """Whatever comes through is right, and the state goes on."""
    sampler = pointwise(2000)
    expected, state, refused = sampler.sample(2, seed=5), sampler.start(2, seed=5), []

    def push() -> None:
        while state.step < 1900:
            try:
                sampler.advance(state, 7)
            except (RuntimeError, ValueError) as error:
                refused.append(str(error))

    threads = [threading.Thread(target=push) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(sampler.advance(state, 2000).levels, expected)
    allowed = ("another thread is advancing it", "the run stands before step")
    assert all(any(text in message for text in allowed) for message in refused)


def test_a_state_in_use_is_refused_to_others(tmp_path):
    sampler = pointwise(2000)
    state = sampler.start(600)
    thread = threading.Thread(target=sampler.advance, args=(state, 2000))
    thread.start()
    while not state.run.unfinished:
        assert thread.is_alive()
    for use in (lambda: sampler.advance(state, 1), lambda: state.fork([0]), lambda: state.save(tmp_path / "state")):
        with pytest.raises(RuntimeError, match="another thread is advancing it"):
            use()
    thread.join()
    assert state.step == 2000
    assert state.fork([0]).step == 2000


def test_a_daemon_that_samples_does_not_disturb_the_end(tmp_path):
    """Python before 3.14 unwinds a thread that asks for its lock when the interpreter has ended. The threads are inside
    the machine then, which must not ask: PyTorch's own calls in a daemon thread may abort the process."""
    script = tmp_path / "script.py"
    script.write_text(
        "import threading, time\n"
        "from tests.generate.small_networks import pointwise\n"
        "sampler = pointwise(1 << 16, verify=False)\n"
        "states = [sampler.start(64, seed) for seed in range(3)]\n"
        "for state in states:\n"
        "    threading.Thread(target=sampler.advance, args=(state, 1 << 16), daemon=True).start()\n"
        "while not all(state.run.unfinished for state in states): time.sleep(0.001)\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": ROOT}
    )
    assert (done.returncode, done.stderr) == (0, "")
