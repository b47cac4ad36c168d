from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.data import mulaw


@pytest.mark.parametrize("levels", [2, 17, 128, 256])
def test_encode_inverts_decode_at_every_level(levels):
    every = np.arange(levels, dtype=np.uint8)
    assert np.array_equal(mulaw.encode(mulaw.decode(every, levels), levels), every)


@given(samples=st.lists(st.floats(-2, 2), min_size=2, max_size=20), levels=st.integers(2, 256))
def test_encode_is_monotone_odd_and_in_range(samples, levels):
    ordered = np.sort(np.array(samples))
    encoded = mulaw.encode(ordered, levels).astype(int)
    assert (np.diff(encoded) >= 0).all()
    assert encoded.min() >= 0
    assert encoded.max() <= levels - 1
    # the mirrored sample lies on the mirrored grid; only a tie between two points may round to either
    assert (np.abs(mulaw.encode(-ordered, levels).astype(int) - (levels - 1 - encoded)) <= 1).all()


def test_error_is_half_a_step_of_the_companded_grid():
    samples = np.linspace(-1, 1, 10001)
    companded = np.sign(samples) * np.log1p(255 * np.abs(samples)) / np.log1p(255)
    on_grid = mulaw.encode(samples) * 2.0 / 255 - 1
    assert np.abs(on_grid - companded).max() <= (1 + 1e-12) / 255


def test_silence_is_the_level_of_zero():
    assert mulaw.silence() == 128
    assert abs(mulaw.decode(np.array([mulaw.silence()]))[0]) < 1e-4
