from __future__ import annotations

import dataclasses
import os
import signal
from types import MethodType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastgen.data import DataConfig
from fastgen.models import from_pretrained
from fastgen.training import loop
from fastgen.training.config import TrainConfig
from fastgen.training.directory import RunDirectory
from fastgen.training.evaluation import EvaluateConfig, evaluate_run


def _at_step(monkeypatch, step: int, act) -> None:
    """Calls ``act`` at the start of a step."""
    update = loop._Training._update

    def updated(training, rate):
        if training.step == step:
            act()
        return update(training, rate)

    monkeypatch.setattr(loop._Training, "_update", updated)


class Killed(BaseException):
    pass


def _kill():
    raise Killed


def test_a_run_leaves_a_model_that_scores_as_reported(tiny):
    config = tiny()
    outcome = loop.train(config)
    names = {
        "config.json",
        "model.safetensors",
        "training.json",
        "data.json",
        "checkpoint",
        "metrics.jsonl",
        "curves.png",
    }
    assert {path.name for path in config.output.iterdir()} == names
    rows = RunDirectory(config.output).read_metrics()
    assert [row["step"] for row in rows if "train" in row] == list(range(1, 9))
    assert [row["step"] for row in rows if "validation" in row] == [4, 8]
    assert rows[-1]["test"] == outcome.test.bits_per_dim
    again = evaluate_run(EvaluateConfig(config.output, batch_size=config.batch_size, progress=False))
    assert again == outcome.test
    stored = TrainConfig.from_json((config.output / "training.json").read_text(), config.output)
    assert dataclasses.replace(stored, progress=False) == config


def test_what_is_saved_is_the_average(whole):
    saved = load_file(whole / "model.safetensors")
    state = RunDirectory(whole).load_checkpoint()
    assert saved.keys() == state["average"].keys()
    assert all(torch.equal(saved[k], v) for k, v in state["average"].items())
    assert any(not torch.equal(saved[k], v) for k, v in state["network"].items())


def test_another_seed_gives_another_run(noisy, whole, same_run):
    loop.train(noisy(seed=1))
    with pytest.raises(AssertionError):
        same_run(noisy().output, whole)


@pytest.mark.parametrize("step", [3, 7])
def test_a_killed_run_resumes_as_if_it_had_not_been(noisy, whole, same_run, monkeypatch, step):
    with monkeypatch.context() as patch:
        _at_step(patch, step, _kill)
        with pytest.raises(Killed):
            loop.train(noisy("killed"))
    assert RunDirectory(noisy("killed").output).load_checkpoint()["step"] == step // 3 * 3
    loop.train(noisy("killed", resume=True))
    same_run(whole, noisy("killed").output)


def test_ctrl_c_writes_a_checkpoint_at_that_step(noisy, whole, same_run, monkeypatch):
    with monkeypatch.context() as patch:
        _at_step(patch, 4, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(loop.TrainingInterrupted, match="stopped at step 5 of 8; a checkpoint was written"):
            loop.train(noisy("stopped"))
    assert RunDirectory(noisy("stopped").output).load_checkpoint()["step"] == 5
    loop.train(noisy("stopped", resume=True))
    same_run(whole, noisy("stopped").output)


def test_a_checkpoint_with_scalars_of_older_versions_resumes(tiny, same_run, tmp_path):
    """LipSwish's parameter was a scalar before it had one dimension."""
    np.savez(tmp_path / "x.npz", data=np.random.default_rng(0).normal(size=(40, 2)))
    given = {"model": "residual_flow", "set": ("blocks=1", "hidden=8"), "data": DataConfig(str(tmp_path / "x.npz"))}
    for name in ("new", "old"):
        loop.train(tiny(name, **given | {"steps": 3}))
    directory = RunDirectory(tiny("old").output)
    state = directory.load_checkpoint()
    scalars = [number for number, held in state["optimizer"]["state"].items() if held["exp_avg"].shape == (1,)]
    assert scalars
    for number in scalars:
        for moment in ("exp_avg", "exp_avg_sq"):
            state["optimizer"]["state"][number][moment].squeeze_()
    directory.save_checkpoint(state)
    for name in ("new", "old"):
        loop.train(tiny(name, **given | {"steps": 5, "resume": True}))
    same_run(tiny("new").output, tiny("old").output)


def test_a_checkpoint_of_other_weights_is_named(tiny):
    """reports_resume_damaged: of another version"""
    loop.train(tiny())
    directory = RunDirectory(tiny().output)
    state = directory.load_checkpoint()
    name = next(iter(state["network"]))
    del state["network"][name]
    directory.save_checkpoint(state)
    with pytest.raises(ValueError, match=rf"last.pt must be of the model 'gated_pixelcnn' .*{name}") as caught:
        loop.train(tiny(resume=True, steps=10))
    assert "\n" not in str(caught.value)


def test_a_finished_run_can_be_resumed_to_more_steps_only(tiny):
    loop.train(tiny(steps=4))
    loop.train(tiny(steps=6, resume=True))
    assert RunDirectory(tiny().output).load_checkpoint()["step"] == 6
    with pytest.raises(ValueError, match=r"steps must be at least 6, .*, got 5"):
        loop.train(tiny(steps=5, resume=True))
    with pytest.raises(ValueError, match="was started with another seed"):
        loop.train(tiny(steps=8, resume=True, seed=7))


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_divergence_stops_the_run_and_keeps_the_last_checkpoint(tiny, monkeypatch, broken):
    config = tiny()
    build = loop.build

    def broken_build(*arguments):
        network = build(*arguments)
        loss = network.loss
        calls = []

        def counted(self, batch):
            calls.append(0)
            if len(calls) <= 5:
                return loss(batch)
            return (
                loss(batch) * float("nan")
                if broken == "loss"
                else loss(batch) + (next(network.parameters()).sum() * 0).sqrt()
            )

        network.loss = MethodType(counted, network)
        return network

    monkeypatch.setattr(loop, "build", broken_build)
    with pytest.raises(loop.TrainingDiverged, match=r"step 5: .* the last checkpoint .* is kept"):
        loop.train(config)
    state = RunDirectory(config.output).load_checkpoint()
    assert state["step"] == 3
    assert all(value.isfinite().all() for value in state["network"].values())


def test_training_lowers_the_loss(tiny):
    config = tiny(steps=40, log_interval=10, evaluate_interval=40, checkpoint_interval=40)
    loop.train(config)
    losses = [row["train"] for row in RunDirectory(config.output).read_metrics() if "train" in row]
    assert losses == sorted(losses, reverse=True)


def test_a_conditional_model_learns_from_labels(tiny):
    config = tiny(conditional=True)
    loop.train(config)
    model = from_pretrained(config.output)
    levels = torch.zeros(2, 1, 8, 8, dtype=torch.int64)
    assert model.config.classes == 4
    assert model.log_prob(levels, torch.tensor([0, 1])).unique().numel() == 2


def test_an_existing_run_is_kept_unless_told(tiny):
    loop.train(tiny(steps=3))
    before = (tiny().output / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="output must be empty"):
        loop.train(tiny(steps=3, seed=1))
    assert (tiny().output / "model.safetensors").read_bytes() == before
    loop.train(tiny(steps=3, seed=1, overwrite=True))
    assert (tiny().output / "model.safetensors").read_bytes() != before
    assert max(row["step"] for row in RunDirectory(tiny().output).read_metrics()) == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "pixelsnake"}, r"name must be one of cubic_spline, ffjord, .*, got 'pixelsnake'"),
        ({"preset": "huge"}, "preset must be one of paper, tiny for 'gated_pixelcnn', got 'huge'"),
        ({"set": ("filtres=4",)}, "filtres: no such field"),
        ({"set": ("layers=many",)}, "layers must be of type int, got 'many'"),
        (
            {"set": ("event_shape=[1, 4, 4]",)},
            r"set must leave event_shape to the data .*, got event_shape=\[1, 4, 4\]",
        ),
        ({"set": ("levels=5", "classes=3")}, r"set must leave classes, levels to the data .*, got levels=5, classes=3"),
        ({"data": DataConfig("nowhere")}, r"data source must be one of digits, two_moons, .*, got 'nowhere'"),
        ({"resume": True}, "nothing to resume"),
    ],
)
def test_a_wrong_request_writes_nothing(tiny, changed, message):
    config = dataclasses.replace(tiny(), **changed)
    with pytest.raises((ValueError, OSError), match=message):
        loop.train(config)
    assert not config.output.exists()
