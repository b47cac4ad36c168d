"""The cells of a loop over an image lie in the grid in which they are drawn."""

from __future__ import annotations

import numpy as np
import pytest

from fastgen.generate.passes.loop_rows import places_of

H, W = 4, 6


def test_a_loop_over_rows_stays_as_it_is():
    steps = np.arange(H * W).reshape(H, W)
    places = places_of(np.ones((H, W), bool), steps)
    assert places.shape == (H, W)
    assert np.array_equal(places.index, steps)


def test_a_loop_over_columns_is_turned():
    steps = np.arange(H * W).reshape(H, W).T
    places = places_of(np.ones((W, H), bool), steps)
    assert places.shape == (H, W)
    assert np.array_equal(places.index, steps)


@pytest.mark.parametrize("moves", [1, -1])
def test_a_loop_over_a_skewed_image_is_straightened_and_what_lies_beside_it_has_no_place(moves):
    row, column = np.meshgrid(np.arange(H), np.arange(W), indexing="ij")
    k = column + row if moves > 0 else column + H - 1 - row
    used, steps = np.zeros((W + H - 1, H), bool), np.zeros((W + H - 1, H), int)
    used[k, row], steps[k, row] = True, row * W + column
    places = places_of(used, steps)
    assert places.shape == (H, W)
    assert np.array_equal(places.index[k, row], row * W + column)
    assert (places.index[~used] == -1).all()
