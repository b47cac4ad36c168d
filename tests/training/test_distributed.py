"""Two CPU processes, started by Fabric and by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastgen.training import loop
from fastgen.training.config import OptimizerConfig
from fastgen.training.directory import RunDirectory

ROOT = Path(__file__).parents[2]
OPTIONS = [
    *("--model", "gated_pixelcnn", "--set", "layers=2", "channels=8", "kernel_size=3", "head_channels=8"),
    *("--accelerator", "cpu", "--no-progress", "--samples", "0"),
    *("--steps", "3", "--batch-size", "8", "--log-interval", "1", "--threads", "1", "--data.levels", "16"),
]


def _train(output: Path, *prefix: str, data: str, devices: int = 1) -> Path:
    command = [*prefix, "-m", "fastgen", "train", "--output", str(output), "--data.source", data, *OPTIONS]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--devices", str(devices)],
        env=environment,
        cwd=output.parent,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@pytest.fixture(scope="module")
def runs(configure, pictures, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("distributed")
    one = configure(
        folder / "one",
        steps=3,
        evaluate_interval=250,
        checkpoint_interval=250,
        optimizer=OptimizerConfig(),
    )
    loop.train(one)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return {
        "one": one.output,
        "fabric": _train(folder / "fabric", sys.executable, data=pictures.source, devices=2),
        "torchrun": _train(folder / "torchrun", *torchrun, data=pictures.source),
    }


@pytest.mark.parametrize("launcher", ["fabric", "torchrun"])
def test_two_processes_share_the_batch_of_one(runs, launcher):
    one, two = (RunDirectory(runs[name]).read_metrics() for name in ("one", launcher))
    assert [row["step"] for row in two] == [row["step"] for row in one]
    # before any update: the mean over the same 8 examples, whose order of summation alone differs
    assert two[0]["train"] == pytest.approx(one[0]["train"], rel=8 * 2**-24)
    assert two[0]["rate"] == one[0]["rate"]


def test_both_launchers_give_the_same_weights(runs, same_run):
    same_run(runs["fabric"], runs["torchrun"])
