"""Damaged files of every kind are refused in one line, or work: no other error, crash, hang or flood of memory."""

from __future__ import annotations

import pytest

from tests.files.damaged_files import KINDS
from tests.files.fuzz_files import fuzz

COUNTS = {"sampler": 120, "state": 120, "model": 50, "checkpoint": 30}


@pytest.mark.needs_extension
def test_damaged_files():
    outcomes, failures = fuzz(COUNTS)
    assert failures == []
    for kind, count in COUNTS.items():
        assert outcomes[kind].total() == count
        assert outcomes[kind]["refused"] > count // 3
        assert outcomes[kind]["works"] > 0


@pytest.mark.slow
@pytest.mark.needs_extension
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(kind):
    assert fuzz({kind: 10_000}, first=1000)[1] == []
