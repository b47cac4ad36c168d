from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgen.data import SPLITS, DataConfig, Dataset, Description, load


def _table(n: int = 40, d: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal((5.0, -3.0, 1e4)[:d], (2.0, 0.01, 300.0)[:d], (n, d))


def _csv(folder: Path, text: str) -> DataConfig:
    (folder / "x.csv").write_text(text)
    return DataConfig(str(folder / "x.csv"))


def _npz(folder: Path, **arrays: np.ndarray) -> DataConfig:
    np.savez(folder / "x.npz", **arrays)
    return DataConfig(str(folder / "x.npz"))


def _rows(data: Dataset) -> set[tuple[float, ...]]:
    whole = torch.cat([data.standardization.undo(data.splits[name].values) for name in SPLITS])
    return {tuple(float(f"{v:.5g}") for v in row) for row in whole}


def _expected(values: np.ndarray) -> set[tuple[float, ...]]:
    return {tuple(float(f"{v:.5g}") for v in row) for row in values}


def test_the_training_split_has_mean_0_and_variance_1(tmp_path):
    data = load(_npz(tmp_path, data=_table()))
    assert (data.kind, data.event_shape, data.levels) == ("vector", (3,), 0)
    train = data.splits["train"].values
    assert train.dtype == torch.float32
    torch.testing.assert_close(train.mean(0), torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(train.std(0, correction=0), torch.ones(3))
    assert _rows(data) == _expected(_table())


@pytest.mark.parametrize("unit", [1e-200, 1e200])
def test_columns_near_the_ends_of_float64_are_standardised(tmp_path, unit):
    wanted, found = load(_npz(tmp_path, data=_table())), load(_npz(tmp_path, data=_table() * unit))
    for name in SPLITS:
        torch.testing.assert_close(found.splits[name].values, wanted.splits[name].values)
    assert found.standardization.log_det == pytest.approx(wanted.standardization.log_det - 3 * math.log(unit))


def test_a_spread_that_float64_does_not_hold_is_refused(tmp_path):
    values = _table()
    values[:, 1] = np.where(np.arange(40) % 2, 1.7e308, -1.7e308)
    with pytest.raises(ValueError, match=r"column 'x1' holds numbers up to 1.7e\+308, .* rescale it"):
        load(_npz(tmp_path, data=values))


def test_data_are_read_again_as_they_were(tmp_path):
    """reports_evaluate_changed_data"""
    before = load(_npz(tmp_path, data=_table()))
    moved = load(_npz(tmp_path, data=_table() * 1000 + 5e6), like=before.description)
    assert moved.standardization == before.standardization
    for name in SPLITS:
        own = before.standardization.undo(before.splits[name].values)
        torch.testing.assert_close(moved.splits[name].values, before.standardization.apply(own * 1000 + 5e6))
    with pytest.raises(ValueError, match="must have 3 columns, as the run standardises, got 2"):
        load(_npz(tmp_path, data=_table(d=2)), like=before.description)
    with pytest.raises(ValueError, match=r"its columns must be \('x0', .*got \('a', 'b', 'c'\)"):
        load(_npz(tmp_path, data=_table(), columns=np.array(["a", "b", "c"])), like=before.description)


def test_the_log_det_is_that_of_standardising(tmp_path):
    data = load(_npz(tmp_path, data=_table()))
    jacobian = torch.autograd.functional.jacobian(
        data.standardization.apply, torch.from_numpy(_table()[:1]).requires_grad_()
    )
    assert data.standardization.log_det == pytest.approx(jacobian[0, :, 0].slogdet()[1].item())
    assert data.in_own_units(torch.zeros(1)) == pytest.approx(data.standardization.log_det)


def test_declared_splits_of_an_archive_are_kept(tmp_path):
    values = _table(30).astype(np.float32)
    data = load(
        _npz(
            tmp_path,
            train=values[:20],
            test=values[20:],
            train_labels=np.zeros(20, int),
            test_labels=np.ones(10, int),
            columns=np.array(["a", "b", "c"]),
        )
    )
    assert [len(data.splits[name]) for name in SPLITS] == [18, 2, 10]
    assert data.columns == ("a", "b", "c")
    assert data.splits["test"].labels.tolist() == [1] * 10
    assert _rows(data) == _expected(values)


@pytest.mark.parametrize("header", [True, False])
def test_a_table_is_read(tmp_path, header):
    lines = (["width, height"] if header else []) + [f"{a!r},{b!r}" for a, b in _table(d=2).tolist()]
    data = load(_csv(tmp_path, "\n".join(lines) + "\n\n"))
    assert data.columns == (("width", "height") if header else ("x0", "x1"))
    assert _rows(data) == _expected(_table(d=2))
    assert Description.from_json(data.description.to_json()) == data.description


def test_a_column_of_a_table_can_be_the_class(tmp_path):
    lines = [f"{x},{'cat' if x > 0 else 'ant'},{x * x}" for x in np.random.default_rng(0).normal(size=40)]
    data = load(_csv(tmp_path, "\n".join(["x,labels,y", *lines])))
    assert data.classes == ("ant", "cat")
    assert data.columns == ("x", "y")
    for split in data.splits.values():
        positive = data.standardization.undo(split.values)[:, 0] > 0
        assert torch.equal(split.labels.bool(), positive)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,x\n", r"x\.csv, line 3, column 2 \(b\): a cell must be a finite number, got 'x'"),
        ("1,2\n3,nan\n", r"x\.csv, line 2, column 2 \(x1\): a cell must be a finite number, got 'nan'"),
        ("1,2\n3,inf\n", r"x\.csv, line 2, column 2 \(x1\): a cell must be a finite number, got 'inf'"),
        ("a,b\n1,2\n3\n", r"x\.csv, line 3: a line must have 2 values, as those before, got 1"),
        ("a,b\n", "holds no line of numbers"),
        ("", "holds no line of numbers"),
        ("labels\ncat\n", "has no column of numbers"),
        ("1,2\n3,4\n", r"data must have at least 3 examples, .*got 2"),
        ("a,b\n" + "1,2\n" * 9, "column 'a' is 1 in every training row"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load(_csv(tmp_path, text))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"data": np.zeros((5, 2), int)}, r"data must be float \[N, D\], got int64 \(5, 2\)"),
        ({"data": np.zeros(5)}, r"data must be float \[N, D\], got float64 \(5,\)"),
        (
            {"data": np.full((5, 2), math.nan)},
            r"data 'x': numbers must be finite, got nan in row 0, column 'x0' \(10 are not\)",
        ),
        ({"data": _table(), "columns": np.array(["a"])}, r"columns must have 3 names, one a column, got 1"),
        (
            {"train": _table(), "test": _table(d=2)},
            r"the splits must have examples of one shape, got \(2,\) and \(3,\)",
        ),
        (
            {"data": _table(), "labels": np.zeros(3, int)},
            r"labels must be 40 integers from 0 on, got int64 \(3,\)",
        ),
    ],
)
def test_a_wrong_archive_is_refused(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        load(_npz(tmp_path, **arrays))
