"""Quick mode: everything runs on tiny sizes to show that it works; its times mean nothing."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

QUICK = os.environ.get("FASTGEN_BENCH_QUICK", "0") not in ("", "0")


def size(full: T, quick: T) -> T:
    """``quick`` if FASTGEN_BENCH_QUICK is set, else ``full``."""
    return quick if QUICK else full
