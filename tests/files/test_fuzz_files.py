"""Damaged files of every kind are refused in one line, or work: no other error, crash, hang or flood of memory."""

from __future__ import annotations

import pytest

from tests.files.damaged_files import KINDS
from tests.files.fuzz_files import fuzz


@pytest.mark.needs_extension
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind):
    outcomes, failures = fuzz(kind, 200)
    assert failures == []
    assert outcomes.total() == 200
    assert outcomes["refused"] > 60
    assert outcomes["works"] > 0


@pytest.mark.slow
@pytest.mark.needs_extension
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(kind):
    assert fuzz(kind, 10_000, first=200)[1] == []
