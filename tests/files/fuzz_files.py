"""Loads damaged files in child processes with limits of memory and time, and says what became of them.

    python -m tests.files.fuzz_files --count 10000              every kind
    python -m tests.files.fuzz_files --kinds sampler --count 500 --first 1000

Every file is made of its number alone, so a failure is made again with ``--first NUMBER --count 1``. It runs under
AddressSanitizer too (LD_PRELOAD of libasan): memory is not limited then.
"""

from __future__ import annotations

import argparse
import json
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
_MARK = "damaged-file"
_EXPECTED = (ValueError, CompileError)
_SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")


def fuzz(counts: dict[str, int], first: int = 0) -> tuple[dict[str, Counter], list[str]]:
    """How often files ``first .. first + count`` of each kind were refused, or worked; and what went wrong."""
    outcomes, failures = {kind: Counter() for kind in counts}, []
    tasks, done = _tasks(counts, first), 0
    with tempfile.TemporaryDirectory() as folder:
        for kind in counts:
            write_good_file(kind, Path(folder))
        while done < len(tasks):
            arguments = ["--child", folder, json.dumps(counts), str(first), str(done)]
            said, begun = [], done
            with subprocess.Popen(
                [sys.executable, "-m", "tests.files.fuzz_files", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=Path(__file__).parents[2],
            ) as child:
                for line in child.stdout or ():
                    mark, _, words = line.rstrip("\n").partition(" ")
                    if mark != _MARK:
                        said.append(line.rstrip("\n"))
                        continue
                    kind, number = tasks[done]
                    outcomes[kind][words.partition(":")[0]] += 1
                    failures += [f"{kind} {number}: {words}"] if words.startswith("FAILED") else []
                    done += 1
            if done < len(tasks):
                kind, number = tasks[done]
                outcomes[kind]["FAILED"] += 1
                words = f"the process ended with {child.returncode}: {' | '.join(said)[-2000:]}"
                failures.append(f"{kind} {number}: {words}")
                done += 1
                if done == begun + 1 and len(failures) > 20:
                    break  # it cannot even begin
    return outcomes, failures


def _tasks(counts: dict[str, int], first: int) -> list[tuple[str, int]]:
    return [(kind, number) for kind, count in counts.items() for number in range(first, first + count)]


def _child(folder: Path, tasks: list[tuple[str, int]]) -> None:
    torch.set_num_threads(1)
    uses = {kind: _prepared(folder, kind) for kind, _ in tasks}
    if not _SANITIZED:
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    for kind, number in tasks:
        choose = random.Random(f"{kind} {number}")
        bad = folder / f"bad {kind}"
        damage(kind, folder / kind, bad, choose)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.alarm(SECONDS)
        try:
            uses[kind](bad, choose)
            outcome = "works"
        except _EXPECTED as error:
            outcome = "refused" if len(str(error).splitlines()) == 1 else f"FAILED: several lines: {error!r}"
        except Exception as error:
            outcome = f"FAILED: {error!r}"
        signal.alarm(0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
        if grown > _MEBIBYTES and not _SANITIZED:
            outcome = f"FAILED: {grown} MiB of memory, {outcome}"
        print(_MARK, outcome.replace("\n", " "), flush=True)


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
    context = None if sampler.request.layout is None else CONTEXT
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
        folder, counts, first, done = arguments.child
        return _child(Path(folder), _tasks(json.loads(counts), int(first))[int(done) :])
    outcomes, failures = fuzz(dict.fromkeys(arguments.kinds, arguments.count), arguments.first)
    for kind, counted in outcomes.items():
        print(f"{kind}: {dict(counted)}")
    print(*failures, sep="\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
