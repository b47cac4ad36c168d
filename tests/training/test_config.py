from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fastgen.data import DataConfig
from fastgen.training.config import OptimizerConfig, TrainConfig


def test_config_survives_json():
    config = TrainConfig(
        Path("x"),
        model="wavenet",
        set=("filters=3", "name=abc"),
        data=DataConfig("folder", window=7),
        optimizer=OptimizerConfig(betas=(0.5, 0.6)),
        devices=2,
    )
    assert TrainConfig.from_json(config.to_json(), Path("x")) == config


def test_overrides_are_json_or_text():
    config = TrainConfig(Path("x"), set=("a=3", "b=[1, 2]", "c=true", "d=relu", "e=1e-3", "f=null"))
    assert config.model_overrides == {"a": 3, "b": (1, 2), "c": True, "d": "relu", "e": 1e-3, "f": None}


@pytest.mark.parametrize("item", ["filters", "=3", "a b=3"])
def test_overrides_refuse(item):
    with pytest.raises(ValueError, match="name=value is allowed"):
        _ = TrainConfig(Path("x"), set=(item,)).model_overrides


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "steps is 0; 1 or more"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"samples": -1}, "samples -1"),
        ({"optimizer": OptimizerConfig(rate=0)}, "0 < final_rate <= rate"),
        ({"optimizer": OptimizerConfig(rate=float("nan"))}, "rate nan"),
        ({"optimizer": OptimizerConfig(ema=1.0)}, "0 <= ema < 1"),
        ({"optimizer": OptimizerConfig(betas=(0.9, 1.5))}, r"betas \(0.9, 1.5\)"),
        ({"seed": -1}, "seed of 0 or more"),
        ({"resume": True, "overwrite": True}, "exclude each other"),
    ],
)
def test_config_refuses(changed, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(Path("x"), **changed)


def test_a_resumed_run_may_not_learn_something_else():
    stored = TrainConfig(Path("x"))
    dataclasses.replace(stored, steps=9000, samples=4, threads=2, resume=True, progress=False).check_resumes(stored)
    with pytest.raises(ValueError, match=r"started with another model, seed; .* may change only"):
        dataclasses.replace(stored, model="wavenet", seed=3).check_resumes(stored)
