from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgen.data import DataConfig
from fastgen.training import loop
from fastgen.training.config import OptimizerConfig, TrainConfig
from fastgen.training.directory import RunDirectory


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> DataConfig:
    """40 labelled pictures of 8 x 8: each a gradient from a random corner."""
    generator = np.random.default_rng(0)
    corners = generator.integers(0, 4, 40)
    ramp = np.add.outer(np.arange(8), np.arange(8)) * 15
    images = np.stack([np.rot90(ramp, corner) for corner in corners]) + generator.integers(0, 20, (40, 8, 8))
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    np.savez(path, images=images.astype(np.uint8), labels=corners)
    return DataConfig(str(path), levels=16)


DROPOUT = {"model": "pixelcnn_pp", "set": ("filters=4", "mixtures=2", "dropout=0.3")}
"""A model whose training draws noise at every step."""


@pytest.fixture(scope="session")
def configure(pictures) -> Callable[..., TrainConfig]:
    """Makes the config of a run of a few steps."""

    def make(output: Path, **changed) -> TrainConfig:
        given = {
            "data": pictures,
            "model": "gated_pixelcnn",
            "set": ("layers=2", "channels=8", "kernel_size=3", "head_channels=8"),
            "steps": 8,
            "batch_size": 8,
            "log_interval": 1,
            "evaluate_interval": 4,
            "checkpoint_interval": 3,
            "samples": 0,
            "accelerator": "cpu",
            "progress": False,
            "optimizer": OptimizerConfig(warmup=2, rate=3e-3),
        }
        return TrainConfig(output, **given | changed)

    return make


@pytest.fixture
def tiny(configure, tmp_path) -> Callable[..., TrainConfig]:
    return lambda name="run", **changed: configure(tmp_path / name, **changed)


@pytest.fixture
def noisy(configure, tmp_path) -> Callable[..., TrainConfig]:
    return lambda name="run", **changed: configure(tmp_path / name, **DROPOUT | changed)


@pytest.fixture(scope="session")
def whole(configure, tmp_path_factory) -> Path:
    """The directory of a run that nothing interrupted."""
    config = configure(tmp_path_factory.mktemp("runs") / "whole", **DROPOUT)
    loop.train(config)
    return config.output


@pytest.fixture(scope="session")
def same_run() -> Callable[[Path, Path], None]:
    """Asserts that two runs ended bitwise the same: weights, averages, optimizer, and what they logged."""

    def check(one: Path, other: Path) -> None:
        first, second = RunDirectory(one), RunDirectory(other)
        _assert_equal(first.load_checkpoint(), second.load_checkpoint())
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
        assert _rows(first) == _rows(second)

    return check


def _rows(run: RunDirectory) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "steps_per_second"} for row in run.read_metrics()]


def _assert_equal(one, other) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            _assert_equal(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other
