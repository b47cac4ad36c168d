from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fastgen
from fastgen import cli
from fastgen.models import list_models
from fastgen.nn import MaskedConv2d

ROOT = Path(__file__).parents[1]
MODEL = ["--model", "gated_pixelcnn", "--set", "layers=2", "channels=8", "kernel_size=3", "head_channels=8"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(30) % 3, classes=np.array(["ant", "bee", "cat"]))
    return str(path)


def _options(pictures: str, output: Path, *more: str) -> list[str]:
    fixed = ["--batch-size", "8", "--accelerator", "cpu", "--samples", "0", "--no-progress", "--threads", "1"]
    return ["train", "--output", str(output), "--data.source", pictures, "--data.levels", "8", *MODEL, *fixed, *more]


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    assert cli.main(_options(pictures, output, "--steps", "3", "--conditional")) == 0
    return output


def test_help_and_unknown_commands(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in cli.COMMANDS)
    assert cli.main([]) == 2
    assert cli.main(["trane"]) == 2
    assert "got 'trane'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "verify", "explain", "bench"])
def test_every_command_explains_its_options(command, capsys):
    assert cli.main([command, "--help"]) == 0
    assert f"fastgen {command}" in capsys.readouterr().out


def test_info_takes_no_options(capsys):
    assert cli.main(["info", "--all"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "fastgen info takes no options\n")


def test_info_says_what_is_there(capsys):
    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    assert torch.__version__ in shown
    assert all(name in shown for name in list_models())


@pytest.fixture(scope="module")
def saved_sampler(tmp_path_factory) -> Path:
    network = torch.nn.Sequential(MaskedConv2d(1, 4, 3, mask="A"), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1))
    path = tmp_path_factory.mktemp("samplers") / "digits.safetensors"
    fastgen.Sampler(network, (1, 5, 4), fastgen.heads.Categorical(2), "raster").save(path)
    return path


def test_explain_says_what_a_saved_sampler_is(saved_sampler, capsys):
    assert cli.main(["explain", str(saved_sampler)]) == 0
    shown = capsys.readouterr().out
    assert "event (1, 5, 4), order 'raster', 20 steps" in shown
    lines = [line.split(maxsplit=1) for line in shown.splitlines()]
    said = dict(line for line in lines if len(line) == 2)
    assert said["head"].startswith("Categorical(")
    assert "instructions" in said["program"]
    assert "of state a sample" in said["memory"]
    assert "\ninstructions\n" not in shown


def test_explain_prints_the_program(saved_sampler, capsys):
    assert cli.main(["explain", str(saved_sampler), "--program"]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith(f"\n\n{fastgen.Sampler.load(saved_sampler).program}\n")


@pytest.mark.parametrize("content", [None, b"", b"no sampler", "old"])
def test_explain_tells_of_a_bad_file_in_one_line(content, tmp_path, capsys):
    path = tmp_path / "bad"
    if content == "old":
        save_file({"weights": torch.zeros(1)}, path, {"program": "{}", "format_version": "2"})
    elif content is not None:
        path.write_bytes(content)
    assert cli.main(["explain", str(path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("fastgen: ")
    assert said.err.count("\n") == 1
    assert str(path) in said.err
    assert content != "old" or "must have format_version" in said.err


def test_explain_needs_a_file(capsys):
    assert cli.main(["explain"]) == 2
    assert "usage: fastgen explain" in capsys.readouterr().err


def test_bench_collects_in_a_fresh_process():
    pytest.importorskip("pytest_benchmark")
    if importlib.util.find_spec("fastgen.bench") is None:
        pytest.skip("the benchmarks are not installed")
    done = subprocess.run(
        [sys.executable, "-m", "fastgen", "bench", "--select", "nothing_has_this_name"],
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")} | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stderr
    assert "deselected" in done.stdout


@pytest.mark.parametrize(
    ("command", "module"), [("train", "tyro"), ("train", "lightning_fabric"), ("evaluate", "tqdm")]
)
def test_a_missing_extra_is_named(command, module, tmp_path):
    code = f"import sys; sys.modules[{module!r}] = None; from fastgen.cli import main; sys.exit(main(sys.argv[1:]))"
    where = [*(["--output"] if command == "train" else []), str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", code, command, *where],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == f"fastgen: fastgen {command} needs {module}: pip install 'fastgen-kernels[zoo]'\n"


def test_train_reports_test_and_baseline(pictures, tmp_path, capsys):
    assert cli.main(_options(pictures, tmp_path / "new", "--steps", "2")) == 0
    shown = capsys.readouterr().out
    assert "trivial baseline, independent histogram of each pixel" in shown
    assert "\ntest " in shown


def test_a_flow_of_a_table_is_trained_evaluated_and_sampled(tmp_path, capsys):
    rows = np.random.default_rng(0).normal((170, 60), (10, 8), (40, 2)).tolist()
    table, run = tmp_path / "people.csv", tmp_path / "run"
    table.write_text("\n".join(["height,weight", *(f"{a},{b}" for a, b in rows)]))
    data = ["--data.source", str(table), "--model", "nice", "--set", "hidden=8"]
    few = ["--steps", "2", "--batch-size", "8", "--samples", "0", "--accelerator", "cpu", "--no-progress"]
    assert cli.main(["train", "--output", str(run), *data, *few]) == 0
    shown = capsys.readouterr().out
    assert "data: people, 2, real numbers; 32 train, 4 validation, 4 test" in shown
    assert "trivial baseline, Gaussian of full covariance: " in shown
    assert cli.main(["evaluate", str(run), "--batch-size", "8", "--no-progress"]) == 0
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    shown = capsys.readouterr().out
    assert f"test: {last['test']:.4f} +- {last['standard_error']:.4f} nats" in shown
    assert "bound" not in shown
    assert cli.main(["sample", str(run), "--count", "3", "--no-progress"]) == 0
    assert "3 samples in" in capsys.readouterr().out
    assert (run / "samples.csv").read_text().startswith("height,weight\n")
    assert cli.main(["sample", str(run), "--naive"]) == 1
    assert (
        "naive must be False for the flow nice (it is for autoregressive models), got True" in capsys.readouterr().err
    )


def test_evaluate_gives_what_training_reported(run, capsys):
    assert cli.main(["evaluate", str(run), "--batch-size", "8", "--no-progress"]) == 0
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"test: {last['test']:.4f} +- {last['standard_error']:.4f} bits/dim" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--output", "{run}"],
            "output must be empty (--resume continues the run in it, --overwrite replaces it)",
        ),
        (["train", "--output", "{run}", "--resume", "--seed", "9"], "was started with another seed"),
        (["train", "--output", "{new}", "--resume"], "nothing to resume"),
        (["train", "--output", "{new}", "--steps", "0"], "steps must be 1 or more, got 0"),
        (
            ["train", "--output", "{new}", "--data.source", "nowhere"],
            "existing folder, .npz or .csv file, got 'nowhere'",
        ),
        (["train", "--output", "{new}", "--model", "wavnet"], "must be one of"),
        (["train", "--output", "{new}", "--devices", "2", "--batch-size", "3"], "a multiple of the 2 processes"),
        (["train", "--output", "{new}", "--accelerator", "mps"], "accelerator 'mps' with 1 devices is not available"),
        (["evaluate", "{new}"], "is no run directory with a model"),
        (["evaluate", "{run}", "--examples", "0"], "batch_size and examples must be 1 or more, got 64 and 0"),
        (["sample", "{new}"], "is no run directory with a model"),
        (["sample", "{run}", "--count", "0"], "count and threads must be 1 or more, seed 0 or more, got 0, None and 0"),
        (["sample", "{run}", "--label", "dog"], "label must be one of ant, bee, cat, got 'dog'"),
        (["sample", "{run}", "--known-rows", "4"], "known_rows must be at most 3"),
        (["sample", "{run}", "--prompt-seconds", "1"], "prompt and prompt_seconds must be left out for images"),
        (["sample", "{run}", "--prompt", "none.wav"], "prompt must be a file, got none.wav"),
        (["sample", "{run}", "--output", "{run}/config.json"], "output must be a directory, got the file"),
    ],
)
def test_wrong_requests_are_refused_in_words(run, tmp_path, capsys, arguments, message):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    status = cli.main([argument.format(run=run, new=tmp_path / "new") for argument in arguments])
    assert status in (1, 2)
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "new").exists()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", "", "model.safetensors is no safetensors file"),
        (
            "training.json",
            '{"steps": 3}',
            "was asked for cannot be read: the fields of DataConfig must be a JSON object, got NoneType",
        ),
        ("data.json", "[]", "the description of the data cannot be read"),
        ("config.json", "{", "config.json must be JSON"),
    ],
)
def test_a_damaged_run_is_refused_in_words(run, tmp_path, capsys, name, content, message):
    damaged = shutil.copytree(run, tmp_path / "damaged")
    (damaged / name).write_text(content)
    assert cli.main(["sample", str(damaged), "--no-progress"]) == 1
    assert message in capsys.readouterr().err


def _start(arguments: list[str], folder: Path, rows: int) -> subprocess.Popen:
    """Starts the command line in a process of its own and waits until it has logged so many steps."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "fastgen", *arguments],
        env=environment,
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = Path(arguments[arguments.index("--output") + 1]) / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") >= rows):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_kill_and_ctrl_c_lose_nothing(pictures, tmp_path, capsys):
    intervals = ["--log-interval", "1", "--checkpoint-interval", "5", "--evaluate-interval", "1000"]
    output = tmp_path / "run"
    command = _options(pictures, output, "--steps", "100000", *intervals)
    killed = _start(command, tmp_path, rows=8)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    reached = torch.load(output / "checkpoint" / "last.pt", weights_only=True)["step"]
    assert reached >= 5

    resumed = ["train", "--output", str(output), "--resume", "--no-progress"]
    stopped = _start([*resumed, "--steps", "100000"], tmp_path, rows=reached + 10)
    stopped.send_signal(signal.SIGINT)
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == cli.INTERRUPTED
    assert f"to continue: fastgen train --output {output} --resume" in errors
    state = torch.load(output / "checkpoint" / "last.pt", weights_only=True)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train" in row] == list(range(1, state["step"] + 1))

    assert cli.main([*resumed, "--steps", str(state["step"] + 2)]) == 0
    assert f"resumed at step {state['step']}" in capsys.readouterr().out
