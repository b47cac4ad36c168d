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
    with pytest.raises(ValueError, match="set must have items name=value, such as filters=40"):
        _ = TrainConfig(Path("x"), set=(item,)).model_overrides


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"batch_size": -1}, "batch_size must be 1 or more, got -1"),
        ({"samples": -1}, "samples must be 0 or more, devices and threads 1 or more, got -1, 1 and None"),
        (
            {"optimizer": OptimizerConfig(rate=0)},
            r"final_rate must be above 0 and at most rate, .*, got 1e-05, 0 and 100",
        ),
        (
            {"optimizer": OptimizerConfig(rate=float("nan"))},
            r"final_rate must be above 0 and at most rate, .*, got 1e-05, nan and 100",
        ),
        (
            {"optimizer": OptimizerConfig(ema=1.0)},
            r"ema must be from 0 to below 1, clip and weight_decay 0 or more, got 1\.0, 1\.0 and 0\.0",
        ),
        (
            {"optimizer": OptimizerConfig(betas=(0.9, 1.5))},
            r"betas must be from 0 to below 1, and seed 0 or more, got \(0\.9, 1\.5\) and 0",
        ),
        ({"seed": -1}, r"betas must be from 0 to below 1, and seed 0 or more, got \(0\.9, 0\.999\) and -1"),
        ({"resume": True, "overwrite": True}, r"overwrite must be False with resume \(one .*, got True"),
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
