"""Describes the machine that a measurement is taken on."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

import fastgen

from .quick import size

DEFAULT_ALLOCATOR = os.environ.get("FASTGEN_BENCH_ALLOCATOR") == "default"
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_KEPT_BYTES = 1 << 30
_LARGEST_MMAP_THRESHOLD = 32 << 20


def describe() -> dict[str, str | int]:
    """Returns processor, cores, instruction set, versions and commit, for the head of a table."""
    from fastgen import _C

    return {
        "processor": _processor(),
        "cores": cores(),
        "isa": _C.isa(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastgen": fastgen.__version__,
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "allocator": keep_freed_memory(),
    }


def cores() -> int:
    """Returns the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_counts() -> list[int]:
    """Returns 1 and the number of processors; in quick mode 1 alone."""
    return sorted({1, size(cores(), 1)})


def slug() -> str:
    """Returns the machine's name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", f"{_processor()} {cores()} cores".lower()).strip("-")


def commit() -> str:
    """Returns the commit of the checkout, with ``-dirty`` where code differs from it; "unknown" outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)bench/results")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def keep_freed_memory() -> str:
    """Tells glibc to keep freed memory, and returns a description of the allocator.

    Otherwise the large temporaries of the PyTorch baselines go back to the system and are faulted in again at every
    call, which makes them slower than they need be. With FASTGEN_BENCH_ALLOCATOR=default it leaves glibc alone.
    """
    if DEFAULT_ALLOCATOR:
        return "as the system has it"
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.libc_ver()[0] == "glibc" else None
    if mallopt is None:
        return "as the system has it"
    kept = mallopt(_TRIM_THRESHOLD, _KEPT_BYTES) and mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    return "glibc, keeps freed memory (trim threshold 1 GiB, mmap threshold 32 MiB)" if kept else "glibc, defaults"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", information.read_text(), re.MULTILINE)
        if found:
            return re.sub(r"\((R|TM)\)", "", found[1]).strip()
    return platform.processor() or platform.machine()
