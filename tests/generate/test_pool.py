"""The machine's threads by themselves, in C++: ``make sanitize`` compiles the same with ThreadSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.needs_extension
def test_threads_meet_throw_and_fork(tmp_path):
    """A thread that threw left the others waiting at their barrier."""
    compiler = os.environ.get("CXX", "c++").split()
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no C++ compiler {compiler[0]}")
    sources = ["tests/generate/pool_driver.cpp", "csrc/cpu/machine/exec/pool.cpp"]
    flags = ["-std=c++17", "-O1", "-g", "-pthread", "-Icsrc"]
    flags += [f"-fsanitize={os.environ['FASTGEN_SANITIZE']}"] if os.environ.get("FASTGEN_SANITIZE") else []
    subprocess.run([*compiler, *flags, *sources, "-o", tmp_path / "driver"], cwd=ROOT, check=True)
    done = subprocess.run([tmp_path / "driver"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
