"""The benchmarks of generation run, on tiny sizes, and every baseline in them passes its check."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ["wavenet", "gated_pixelcnn", "pixelcnn_pp-40-2", "pixelsnail", "made", "lstm-2x256", "lstm-3x512"]
OTHERS = {"compile-PixelCNN++, tiny"}
if importlib.util.find_spec("transformers") is not None:
    OTHERS |= {"gpt-prompt"}
    if importlib.util.find_spec("ctranslate2") is not None:
        NAMES.append("gpt")
PARTS = {f"{name}-{batch}" for name in NAMES for batch in (1, 16)}


@pytest.mark.needs_extension
def test_every_benchmark_of_generation_runs_and_writes_its_results(tmp_path):
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = outer | {
        "FASTGEN_BENCH_QUICK": "1",
        "FASTGEN_BENCH_RESULTS": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "bench/generate", "--benchmark-enable", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*.json")
    parts = json.loads(path.read_text())["parts"]
    assert set(parts) == PARTS | OTHERS
    for name in PARTS:
        rows = parts[name]["rows"]
        assert {"fastgen", "textbook"} <= {row["provider"].split()[0] for row in rows}
        assert all(row["per_second"] > 0 and row["rounds"] > 0 for row in rows)
        assert all(row["percent_of_floor"] > 0 for row in rows if row["provider"].startswith("fastgen"))
    assert path.with_suffix(".md").read_text().count("###") == len(parts)
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
