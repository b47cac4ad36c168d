"""Cells are cut into boxes of cells that read alike."""

from __future__ import annotations

import numpy as np

from fastgen.generate.schedule.boxes import MOST_BOXES, boxes_of
from fastgen.generate.schedule.iteration_domain import Cells

H, W = 4, 6


def test_boxes_hold_every_cell_once_and_cells_of_one_kind():
    row, column = (a.reshape(-1) for a in np.meshgrid(np.arange(H), np.arange(W), indexing="ij"))
    kind = np.where(row == 0, 0, np.where(column == 0, 1, 2)) + 3 * ((row == 2) & (column == 3))
    boxes = boxes_of(Cells.of_frame(row, column), [kind, column * 0])
    assert np.array_equal(np.sort(np.concatenate(boxes)), np.arange(H * W))
    for box in boxes:
        assert len(set(kind[box])) == 1
        assert len(box) == np.prod([np.ptp(of[box]) + 1 for of in (row, column)])


def test_too_many_boxes_are_none():
    column = np.arange(2 * MOST_BOXES + 2)
    assert boxes_of(Cells.of_frame(column * 0, column), [column % 2]) is None
    assert len(boxes_of(Cells.of_frame(column * 0, column), [column // 4])) <= MOST_BOXES
