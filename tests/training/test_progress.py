from __future__ import annotations

from fastgen.data import DataConfig
from fastgen.training import loop
from fastgen.training.directory import RunDirectory


def test_a_models_own_numbers_are_logged_and_shown(tiny, capsys):
    """FFJORD counts the evaluations of its field: here one step of four stages."""
    settings = ("hidden=[8]", "solver=rk4", "step_size=0.5")
    data = DataConfig("two_moons", examples=50)
    config = tiny(data=data, model="ffjord", set=settings, steps=2, log_interval=1, samples=0, progress=True)
    loop.train(config)
    rows = [row for row in RunDirectory(config.output).read_metrics() if "train" in row]
    assert [(row["evaluations"], row["backward evaluations"]) for row in rows] == [(4, 4)] * 2
    assert "4 evaluations, 4 backward evaluations" in capsys.readouterr().err
