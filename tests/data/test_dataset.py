from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastgen.data import SPLITS, DataConfig, Dataset, Description, Split, load
from fastgen.data.dataset import partition, quantise


@given(count=st.integers(3, 2000))
def test_partition_is_disjoint_complete_and_always_the_same(count):
    parts = partition(count)
    assert sorted(np.concatenate([parts[name] for name in SPLITS])) == list(range(count))
    assert all(len(parts[name]) for name in SPLITS)
    again = partition(count)
    assert all(np.array_equal(parts[name], again[name]) for name in SPLITS)


def test_partition_needs_three_examples():
    with pytest.raises(ValueError, match=r"data must have at least 3 examples, .*got 2"):
        partition(2)


@given(levels=st.integers(2, 256))
def test_quantise_is_monotone_and_takes_every_level_equally_often(levels):
    quantised = quantise(np.arange(256, dtype=np.uint8), levels).numpy().astype(int)
    assert (np.diff(quantised) >= 0).all()
    counts = np.bincount(quantised, minlength=levels)
    assert len(counts) == levels
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("levels", [1, 257])
def test_quantise_refuses(levels):
    with pytest.raises(ValueError, match=f"levels must be from 2 to 256, got {levels}"):
        quantise(np.zeros(1, np.uint8), levels)


def test_digits_are_whole_and_split_without_overlap():
    data = load(DataConfig())
    assert (data.kind, data.event_shape, data.levels, len(data.classes)) == ("image", (1, 8, 8), 17, 10)
    assert sum(len(split) for split in data.splits.values()) == 1797
    assert data.splits["train"].values.min() == 0
    assert data.splits["train"].values.max() == 16
    for name in SPLITS:
        assert set(data.splits[name].labels.tolist()) == set(range(10))


def test_batch_returns_int64_examples_in_the_order_asked():
    split = load(DataConfig()).splits["train"]
    indices = torch.tensor([5, 2, 5])
    levels, labels = split.batch(indices)
    assert levels.dtype == labels.dtype == torch.int64
    assert torch.equal(levels, split.values[indices].long())
    assert torch.equal(labels, split.labels[indices])


def test_description_survives_json():
    description = load(DataConfig()).description
    assert Description.from_json(description.to_json()) == description


def _splits(**changed: Split) -> dict[str, Split]:
    return {
        name: Split(torch.zeros(2, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)) for name in SPLITS
    } | changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test": Split(torch.zeros(0, 4, dtype=torch.uint8))}, "the split 'test' is empty"),
        (
            {"test": Split(torch.zeros(2, 5, dtype=torch.uint8))},
            r"examples must have shape \(4,\), got \(5,\)",
        ),
        (
            {"train": Split(torch.full((2, 4), 9, dtype=torch.uint8))},
            "levels must be from 0 to 7, got 9",
        ),
        (
            {"train": Split(torch.zeros(2, 4, dtype=torch.uint8))},
            "every example must have a label from 0 to 1",
        ),
        (
            {"train": Split(torch.zeros(2, 4, dtype=torch.uint8), torch.tensor([0, 2]))},
            "every example must have a label from 0 to 1",
        ),
    ],
)
def test_dataset_refuses(changed, message):
    with pytest.raises(ValueError, match=message):
        Dataset("x", "audio", (4,), 8, _splits(**changed), ("a", "b"), 8000)
