"""Flows in training, evaluation and sampling: real vectors, images, 2-d toys."""

from __future__ import annotations

import csv
from collections.abc import Callable
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgen.data import DataConfig, load
from fastgen.models import NICE as NICE_MODEL
from fastgen.models import from_pretrained
from fastgen.models.flows import NoSamples
from fastgen.training import loop
from fastgen.training.config import OptimizerConfig, TrainConfig
from fastgen.training.directory import RunDirectory
from fastgen.training.evaluation import EvaluateConfig, evaluate_run
from fastgen.training.run import load_run
from fastgen.training.sampling import SampleConfig, sample

NICE = {"model": "nice", "set": ("hidden=8", "couplings=2")}
SCALES = np.array([1.0, 100.0, 0.01])


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Callable[[bool], DataConfig]:
    """60 labelled vectors, as they are or with their columns in other units."""
    folder = tmp_path_factory.mktemp("tables")
    values = np.random.default_rng(0).normal((1, 2, 3), (3, 2, 1), (60, 3))
    for name, data in (("plain", values), ("scaled", values * SCALES)):
        np.savez(folder / f"{name}.npz", data=data, labels=np.arange(60) % 2, columns=np.array(["a", "b", "c"]))
    return lambda scaled=False: DataConfig(str(folder / f"{'scaled' if scaled else 'plain'}.npz"))


@pytest.fixture(scope="module")
def vectors(configure, table, tmp_path_factory) -> Path:
    config = configure(tmp_path_factory.mktemp("runs") / "vectors", data=table(), conditional=True, **NICE)
    loop.train(config)
    return config.output


@pytest.fixture(scope="module")
def toy(configure, tmp_path_factory) -> tuple[TrainConfig, loop.Outcome]:
    data = DataConfig("eight_gaussians", examples=50)
    output = tmp_path_factory.mktemp("runs") / "toy"
    config = configure(output, data=data, steps=2, samples=70, evaluate_examples=20, **NICE)
    return config, loop.train(config)


def test_the_likelihood_is_in_the_units_of_the_data(tiny, table):
    plain = loop.train(tiny("plain", data=table(), **NICE))
    scaled = loop.train(tiny("scaled", data=table(scaled=True), **NICE))
    assert plain.test.unit == "nats"
    for one, other in ((plain.test, scaled.test), (plain.baseline, scaled.baseline)):
        assert other.value - one.value == pytest.approx(sum(map(log, SCALES)), abs=1e-5)
    drawn = [sample(SampleConfig(tiny(name).output, 20, progress=False)) for name in ("plain", "scaled")]
    torch.testing.assert_close(drawn[1].values, drawn[0].values * torch.from_numpy(SCALES), rtol=1e-5, atol=1e-5)
    assert drawn[1].log_prob.mean() - drawn[0].log_prob.mean() == pytest.approx(-sum(map(log, SCALES)), abs=1e-4)


def test_evaluate_and_resume_standardise_as_in_training(tiny, tmp_path):
    """reports_evaluate_changed_data"""
    values = np.random.default_rng(0).normal(size=(60, 2))
    np.savez(tmp_path / "x.npz", data=values)
    config = {"data": DataConfig(str(tmp_path / "x.npz")), "steps": 2, **NICE}
    loop.train(tiny(**config))
    before = load_run(tiny().output)
    np.savez(tmp_path / "x.npz", data=values * (3, 1) + (1, 0))
    found = evaluate_run(EvaluateConfig(tiny().output, progress=False))
    data = load(config["data"])  # its partition only
    chosen = before.data.standardization.apply(data.standardization.undo(data.splits["test"].values))
    with torch.no_grad():
        log_prob = before.model.log_prob(chosen).double() + before.data.standardization.log_det
    assert found.nats == pytest.approx(-log_prob.mean().item(), abs=1e-5)
    loop.train(tiny(**config | {"steps": 3, "resume": True}))
    assert load_run(tiny().output).data == before.data


def test_samples_of_vectors_are_a_table(vectors, tmp_path):
    drawn = sample(SampleConfig(vectors, 300, output=tmp_path, progress=False))
    assert [path.name for path in drawn.files] == ["samples.csv"]
    with drawn.files[0].open() as file:
        header, *rows = csv.reader(file)
    assert header == ["a", "b", "c"]
    assert torch.equal(torch.tensor([[float(v) for v in row] for row in rows], dtype=torch.float64), drawn.values)
    run = load_run(vectors)
    whole = run.model.sample(300, seed=0, context=torch.arange(300) % 2)
    torch.testing.assert_close(run.data.standardization.apply(drawn.values), whole)


def test_a_run_on_a_toy_tells_its_divergence_and_draws_the_plane(toy):
    config, outcome = toy
    data = load(config.data)
    model = from_pretrained(config.output)
    test = data.splits["test"].values
    with torch.no_grad():
        log_prob = data.in_own_units(model.log_prob(test).double())
    ratios = data.log_density(data.standardization.undo(test)) - log_prob
    assert outcome.test.divergence.nats == pytest.approx(ratios.mean().item(), abs=1e-5)
    assert outcome.baseline.divergence.nats > 0
    last = RunDirectory(config.output).read_metrics()[-1]
    assert last["kl"] == outcome.test.divergence.nats
    assert (config.output / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert len((config.output / "samples.csv").read_text().splitlines()) == 71


def test_the_plane_is_drawn_without_the_data(configure, tmp_path):
    points = np.random.default_rng(0).normal(size=(30, 2))
    np.savez(tmp_path / "x.npz", data=points, labels=np.arange(30) % 2)
    loop.train(configure(tmp_path / "run", data=DataConfig(str(tmp_path / "x.npz")), steps=2, conditional=True, **NICE))
    (tmp_path / "x.npz").unlink()
    drawn = sample(SampleConfig(tmp_path / "run", 40, progress=False))
    assert [path.name for path in drawn.files] == ["samples.csv", "samples.png"]


@pytest.mark.parametrize("data", ["vectors", "images"])
def test_a_run_resumes_bitwise_and_is_evaluated_as_reported(tiny, table, pictures, same_run, monkeypatch, data):
    given = NICE | {"data": table() if data == "vectors" else pictures}
    outcome = loop.train(tiny("whole", **given))
    update = loop._Training._update

    def interrupted(training, rate):
        training.interrupt.requested = training.step == 4
        return update(training, rate)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Training, "_update", interrupted)
        with pytest.raises(loop.TrainingInterrupted, match="stopped at step 5 of 8"):
            loop.train(tiny("stopped", **given))
    loop.train(tiny("stopped", resume=True, **given))
    same_run(tiny("whole").output, tiny("stopped").output)
    again = evaluate_run(EvaluateConfig(tiny("whole").output, batch_size=8, progress=False))
    assert again == outcome.test


def test_what_a_layer_keeps_of_its_weights_is_that_of_the_average(tiny):
    """A Lipschitz bound is of the weights that are evaluated and saved, not of those that are trained."""
    fields = ("hidden=16", "blocks=1", "hidden_layers=3", "coefficient=0.3", "iterations=1")
    data = DataConfig("eight_gaussians", examples=200)
    quick = OptimizerConfig(rate=0.1, warmup=2)
    config = tiny("residual", model="residual_flow", set=fields, data=data, steps=12, optimizer=quick, batch_size=100)
    test = loop.train(config).test
    assert evaluate_run(EvaluateConfig(config.output, batch_size=100, progress=False)).value == test.value


def test_images_of_a_flow_are_levels_with_a_bound(tiny, pictures):
    loop.train(tiny(data=pictures, steps=2, **NICE))
    drawn = sample(SampleConfig(tiny().output, 5, progress=False))
    assert drawn.bound
    assert drawn.values.dtype == torch.int64
    assert [path.name for path in drawn.files] == ["samples.png"]
    assert drawn.log_prob.isfinite().all()


def test_the_first_batch_sets_layers_before_the_average_is_begun(tiny, pictures, monkeypatch):
    config = tiny(data=pictures, model="glow", set=("steps=1", "scales=1", "hidden=4"), steps=1)
    began = []
    monkeypatch.setattr(loop._Training, "run", lambda training: began.append(training))
    loop.train(config)
    network, average = began[0].network.state_dict(), began[0].average.module.state_dict()
    initialized = [name for name in average if name.endswith("initialized")]
    assert initialized
    assert all(average[name] for name in initialized)
    assert all(torch.equal(average[name], value) for name, value in network.items())


@pytest.mark.parametrize("data", ["vectors", "images"])
def test_an_inverse_that_overflows_is_said_and_does_not_fail_the_training(
    tiny, table, pictures, monkeypatch, capsys, data
):
    monkeypatch.setattr(NICE_MODEL, "inverse", _broken_inverse)
    config = tiny(data=table() if data == "vectors" else pictures, steps=1, samples=3, **NICE)
    loop.train(config)
    assert "no samples: 3 of 3 samples are not finite: the inverse of nice overflows" in capsys.readouterr().out
    with pytest.raises(NoSamples):
        sample(SampleConfig(config.output, 3, output=config.output / "out", progress=False))
    assert not (config.output / "out").exists()


def _broken_inverse(model: NICE_MODEL, z: torch.Tensor, context=None, *, seed=None) -> tuple[torch.Tensor, ...]:
    return torch.full((len(z), *model.config.event_shape), torch.nan), z.new_zeros(len(z))


def test_autoregressive_models_refuse_real_numbers(tiny, table):
    with pytest.raises(ValueError, match=r"model must be one of real numbers, .*glow.*, got 'pixelcnn_pp'"):
        loop.train(tiny(data=table(), model="pixelcnn_pp", set=()))
    assert not tiny().output.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"top_k": 5}, r"top_k must be 0 for the flow nice \(it is for autoregressive models\), got 5"),
        ({"top_p": 0.5}, r"top_p must be 1\.0 for the flow nice \(it is for autoregressive models\), got 0\.5"),
        ({"known_rows": 2}, r"known_rows must be 0 for the flow nice \(it is for autoregressive models\), got 2"),
        ({"prompt_seconds": 1.0}, r"prompt_seconds must be 0\.0 for the flow nice .*, got 1\.0"),
        ({"weights": "int8"}, "weights must be 'float32' for the flow nice .*, got 'int8'"),
        ({"naive": True}, r"naive must be False for the flow nice \(it is for autoregressive models\), got True"),
        ({"temperature": 0.0}, r"temperature must be a finite number above 0, got 0\.0"),
        ({"temperature": float("inf")}, "temperature must be a finite number above 0, got inf"),
        ({"label": "7"}, "label must be one of 0, 1, got '7'"),
    ],
)
def test_requests_that_do_not_fit_a_flow_are_refused_before_any_work(vectors, tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        sample(SampleConfig(vectors, 2, output=tmp_path / "out", progress=False, **changed))
    assert not (tmp_path / "out").exists()
