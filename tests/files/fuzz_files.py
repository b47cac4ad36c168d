"""Loads damaged files in child processes with limits of memory and time, and says what became of them.

    python -m tests.files.fuzz_files --count 10000              every kind
    python -m tests.files.fuzz_files --kinds sampler --count 500 --first 1000

Every file is made of its number alone, so a failure is made again with ``--first NUMBER --count 1``. It runs under
AddressSanitizer too (LD_PRELOAD of libasan): memory is not limited then.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

import fastgen
from fastgen.generate import CompileError
from fastgen.training.directory import RunDirectory
from tests.files.damaged_files import CONTEXT, KINDS, damage, write_good_file

SECONDS = 60
"""That a file may take on a busy machine; most take milliseconds."""
_ADDRESSES = 6 << 30
_MEBIBYTES = 400
"""By which a file of some kilobytes may raise the memory in use."""
_EXPECTED = (ValueError, CompileError)
_SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")


def fuzz(kind: str, count: int, first: int = 0) -> tuple[Counter, list[str]]:
    """How often files ``first .. first + count`` of a kind were refused, or worked; and what went wrong, in words."""
    outcomes, failures = Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        write_good_file(kind, Path(folder))
        at, end = first, first + count
        while at < end:
            child = subprocess.Popen(
                [sys.executable, "-m", "tests.files.fuzz_files", "--child", folder, kind, str(at), str(end)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=Path(__file__).parents[2],
            )
            lines = []
            for line in child.stdout or ():
                number, _, words = line.rstrip("\n").partition(" ")
                if number.isdigit() and words.partition(":")[0] in ("refused", "works", "FAILED"):
                    at = int(number) + 1
                    outcome = words.partition(":")[0]
                    outcomes[outcome] += 1
                    if outcome == "FAILED":
                        failures.append(f"{kind} {number}: {words}")
                else:
                    lines.append(line)
            if child.wait():
                outcomes["FAILED"] += 1
                said = " | ".join(lines)[-2000:].replace("\n", " ")
                failures.append(f"{kind} {at}: the process ended with {child.returncode}: {said}")
                at += 1
    return outcomes, failures


def _child(folder: Path, kind: str, first: int, end: int) -> None:
    torch.set_num_threads(1)
    use = _prepared(folder, kind)
    if not _SANITIZED:
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    bad = folder / "bad"
    for number in range(first, end):
        choose = random.Random(f"{kind} {number}")
        damage(kind, folder / kind, bad, choose)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.alarm(SECONDS)
        try:
            use(bad, choose)
            outcome = "works"
        except _EXPECTED as error:
            outcome = "refused" if len(str(error).splitlines()) == 1 else f"FAILED: several lines: {error!r}"
        except Exception as error:
            outcome = f"FAILED: {error!r}"
        signal.alarm(0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
        if grown > _MEBIBYTES and not _SANITIZED:
            outcome = f"FAILED: {grown} MiB of memory, {outcome}"
        print(number, outcome.replace("\n", " "), flush=True)


def _prepared(folder: Path, kind: str):
    """Loads a file of a kind and uses what comes of it, for some steps."""
    if kind == "sampler":
        return _use_sampler
    if kind == "model":
        return _use_model
    if kind == "checkpoint":
        return lambda path, choose: RunDirectory(path).load_checkpoint()
    good = fastgen.Sampler.load(folder / "sampler", threads=1)

    def use_state(path: Path, choose: random.Random) -> None:
        state = good.load_state(path)
        good.advance(state.fork([0, 1, 0]) if choose.random() < 0.3 and state.batch > 1 else state, 20)

    return use_state


def _use_sampler(path: Path, choose: random.Random) -> None:
    sampler = fastgen.Sampler.load(
        path, machine=choose.choice(["cpu", "reference", None]), threads=choose.choice([1, 2])
    )
    if math.prod(sampler.event_shape) > 1 << 20:  # the caller sees what is asked for, and would wait for it
        return
    context = None if sampler.layout is None else CONTEXT
    state = sampler.start(choose.choice([1, 3]), seed=1, context=context, log_prob=True)
    sampler.advance(state, choose.choice([1, 5, 20]))
    if sampler.order.name == "time":
        known = torch.zeros(1, *sampler.event_shape, dtype=torch.int64)
        sampler.sample(1, context=context, known=known, known_mask=known == 0) if known.numel() < 100 else None


def _use_model(path: Path, choose: random.Random) -> None:
    model = fastgen.models.from_pretrained(path)
    if math.prod(model.config.event_shape) <= 1 << 10:
        model.sample(2, seed=1, context=model.example_context(2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, kind, first, end = arguments.child
        return _child(Path(folder), kind, int(first), int(end))
    wrong = []
    for kind in arguments.kinds:
        outcomes, failures = fuzz(kind, arguments.count, arguments.first)
        print(f"{kind}: {dict(outcomes)}", flush=True)
        print(*failures, sep="\n", flush=True)
        wrong += failures
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
