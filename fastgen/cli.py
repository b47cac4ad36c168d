"""The command line: ``fastgen train | sample | evaluate | verify | explain | bench | info``."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastgen.nn import FixedPointNotConverged, SolverLimitExceeded

COMMANDS = {
    "train": "train a model on data",
    "sample": "generate from a trained model",
    "evaluate": "score held-out data under a trained model",
    "verify": "try out a trained model, or a network in a Python file, which is executed",
    "explain": "describe a saved sampler and print its step program",
    "bench": "run the benchmarks against reference implementations",
    "info": "show versions, the compiled extension, and which backend runs each op",
}
USAGE = "usage: fastgen <command> [options]\n\n" + "".join(f"  {name:10}{text}\n" for name, text in COMMANDS.items())
INTERRUPTED = 130  # 128 + SIGINT, as shells say it


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    0, 1 after a failure or where ``verify`` finds one, 2 for wrong usage, 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE + "\nfastgen <command> --help explains its options.")
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        print(f"fastgen: command must be one of {', '.join(COMMANDS)}, got {command!r}\n\n{USAGE}", file=sys.stderr)
        return 2
    try:
        return _RUN[command](rest)
    except ModuleNotFoundError as error:
        return report_missing(f"fastgen {command}", error)
    except SystemExit as stopped:  # from tyro: after --help, or a command line that it cannot parse
        return int(stopped.code or 0)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ValueError, OSError, FixedPointNotConverged, SolverLimitExceeded) as error:
        return _fail(str(error))


def report_missing(what: str, error: ModuleNotFoundError) -> int:
    """Prints the extra that installs the module that ``what`` needs; raises the error again if none does."""
    module = (error.name or "").split(".")[0]
    if module in ("", "fastgen"):
        raise error
    extra = "dev" if module == "pytest" else "zoo"
    return _fail(f"{what} needs {module}: pip install 'fastgen-kernels[{extra}]'")


def _fail(message: str) -> int:
    print(f"fastgen: {message}", file=sys.stderr)
    return 1


def _parse(config: type, command: str, arguments: list[str], default=None):
    import tyro

    given = {} if default is None else {"default": default}
    return tyro.cli(config, args=arguments, prog=f"fastgen {command}", description=COMMANDS[command], **given)


def _train(arguments: list[str]) -> int:
    from fastgen.training.config import TrainConfig
    from fastgen.training.directory import RunDirectory

    config = _parse(TrainConfig, "train", arguments)
    if config.resume:
        directory = RunDirectory(config.output)
        directory.check_resumable()
        stored = TrainConfig.from_json(directory.training.read_bytes(), config.output)
        config = _parse(TrainConfig, "train", arguments, default=stored)

    from fastgen.training.loop import TrainingDiverged, TrainingInterrupted, train

    try:
        train(config)
    except TrainingInterrupted as stopped:
        print(f"{stopped}\nto continue: fastgen train --output {config.output} --resume", file=sys.stderr)
        return INTERRUPTED
    except TrainingDiverged as error:
        return _fail(str(error))
    return 0


def _sample(arguments: list[str]) -> int:
    from fastgen.training.sampling import SampleConfig, sample

    config = _parse(SampleConfig, "sample", arguments)
    drawn = sample(config)
    mean = f"mean log-probability {'at least ' if drawn.bound else ''}{drawn.log_prob.mean():.2f} nats"
    number = "1 sample" if len(drawn.values) == 1 else f"{len(drawn.values)} samples"
    print(f"{number} in {drawn.seconds:.3g} s, {mean}")
    if drawn.naive_seconds is not None:
        ratio = f"{drawn.naive_seconds / drawn.seconds:.1f} times as long"
        print(f"textbook loop: {drawn.naive_seconds:.3g} s ({ratio}); {drawn.comparison}")
    print("\n".join(map(str, drawn.files)))
    return 0


def _evaluate(arguments: list[str]) -> int:
    from fastgen.training.evaluation import EvaluateConfig, evaluate_run

    config = _parse(EvaluateConfig, "evaluate", arguments)
    print(f"{config.split}: {evaluate_run(config).report}")
    return 0


def _verify(arguments: list[str]) -> int:
    from fastgen.training.verification import VerifyConfig, verify_network

    config = _parse(VerifyConfig, "verify", arguments)
    report = verify_network(config)
    print(report)
    if config.plot is not None:
        report.plot(config.plot)
        print(config.plot)
    return 0 if report.passed else 1


def _explain(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("fastgen explain", description=COMMANDS["explain"])
    parser.add_argument("file", type=Path, help="a sampler, as Sampler.save writes it")
    parser.add_argument("--program", action="store_true", help="print the step program, one line an instruction")
    given = parser.parse_args(arguments)

    from fastgen import Sampler

    sampler = Sampler.load(given.file)
    print(sampler.explain())
    print(f"  {'head':<16} {sampler.head}")
    if given.program:
        print(f"\n{sampler.program}")
    return 0


@dataclass(frozen=True)
class BenchConfig:
    select: str = ""
    """Run only the benchmarks whose names match this expression (pytest -k)."""
    json: Path | None = None
    """Write the measurements to this file."""


def _bench(arguments: list[str]) -> int:
    import pytest

    config = _parse(BenchConfig, "bench", arguments)
    spec = importlib.util.find_spec("fastgen.bench")
    if spec is None or not spec.submodule_search_locations:
        return _fail("the benchmarks are not installed: fastgen.bench is missing")
    options = ["-o", "python_files=bench_*.py", "-o", "addopts=", "--import-mode=importlib", "--benchmark-only"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of modules that tyro has imported
    if config.json is not None:
        options.append(f"--benchmark-json={config.json}")
    if config.select:
        options += ["-k", config.select]
    return int(pytest.main([*spec.submodule_search_locations, *options]))


def _info(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        print("usage: fastgen info")
        return 0
    if arguments:
        print("fastgen info takes no options", file=sys.stderr)
        return 2
    import torch

    import fastgen

    print(f"fastgen {fastgen.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}")
    print(f"compiled extension: {fastgen.extension_error or 'loaded'}")
    for entry in fastgen.backends():
        print(f"{entry.op} on {entry.device}: {entry.backend} ({entry.reason})")
    print(f"models: {', '.join(fastgen.list_models())}")
    return 0


_RUN: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "sample": _sample,
    "evaluate": _evaluate,
    "verify": _verify,
    "explain": _explain,
    "bench": _bench,
    "info": _info,
}
