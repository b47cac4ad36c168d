"""A finished run, read from its directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastgen.data import Description
from fastgen.models import Model, from_pretrained
from fastgen.training.config import TrainConfig
from fastgen.training.directory import RunDirectory


@dataclass(frozen=True)
class TrainingRun:
    """A run of ``fastgen train``: the model with averaged weights, its options, and a description of its data."""

    model: Model
    config: TrainConfig
    data: Description


def load_run(path: Path) -> TrainingRun:
    """Raises FileNotFoundError where ``path`` is no run directory or holds no model yet."""
    directory = RunDirectory(path)
    for file in (directory.training, directory.data, path / "config.json", path / "model.safetensors"):
        if not file.is_file():
            raise FileNotFoundError(f"{path} is no run directory with a model: {file.name} is missing")
    config = TrainConfig.from_json(directory.training.read_bytes(), path)
    return TrainingRun(from_pretrained(path), config, Description.from_json(directory.data.read_bytes()))
