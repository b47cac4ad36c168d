"""The 8 x 8 handwritten digits that come with scikit-learn: 1797 grey images, 17 levels."""

from __future__ import annotations

import numpy as np
import torch

from fastgen.data.dataset import Dataset, Split, partition


def load_digits() -> Dataset:
    """1258 training, 180 validation and 359 test images of shape (1, 8, 8), labels 0 to 9 (Alpaydin & Kaynak 1998)."""
    from sklearn.datasets import load_digits as load

    digits = load()
    levels = torch.from_numpy(digits.images.astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    parts = partition(len(levels), validation=0.1, test=0.2)
    splits = {name: Split(levels[index], labels[index]) for name, index in parts.items()}
    return Dataset("digits", "image", (1, 8, 8), 17, splits, tuple("0123456789"))
