"""The table of ops has every op, and its command runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.suite.workloads import WORKLOADS
from fastgen.ops.registry import OPS

ROOT = Path(__file__).parents[1]
PUBLIC = {op.name for op in OPS.values() if not op.part_of}


def test_every_op_has_a_workload_and_a_row_in_the_documentation():
    assert set(WORKLOADS) == PUBLIC
    page = (ROOT / "docs" / "ops.md").read_text()
    assert {name for name in PUBLIC if f"| `{name}` |" not in page} == set()


def test_a_workload_grows_with_its_samples():
    def numbers(workload, many: int) -> int:
        return sum(t.numel() for t in workload.make(many).values() if isinstance(t, torch.Tensor))

    for name, workload in WORKLOADS.items():
        assert numbers(workload, 2) > numbers(workload, 1), name


@pytest.mark.needs_extension
def test_the_command_measures_every_op(tmp_path):
    path = tmp_path / "table.md"
    command = [sys.executable, "-m", "bench.ops_table", "--output", str(path)]
    environment = os.environ | {"FASTGEN_BENCH_QUICK": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = path.read_text()
    for name in PUBLIC:
        assert f"| `{name}` |" in table
    assert table.count("| forward |") == len(PUBLIC)


def test_a_machine_without_a_gpu_is_told_so():
    if torch.cuda.is_available():
        pytest.skip("torch finds a CUDA device")
    command = [sys.executable, "-m", "bench.ops_table", "--device", "cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "torch finds no CUDA device" in done.stderr
