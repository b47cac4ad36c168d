"""What a run directory holds is data: every field is checked, and nothing takes more memory than the file has."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from fastgen.data import Description
from fastgen.data.standardization import Standardization
from fastgen.training.config import TrainConfig
from fastgen.training.directory import RunDirectory
from fastgen.training.loop import _load_moments


@pytest.fixture
def directory(tmp_path):
    """A run's directory with the checkpoint of a linear layer."""
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.25)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {name: layer.state_dict() for name in ("network", "average")} | {"step": 1}
    RunDirectory(tmp_path).save_checkpoint(state | {"optimizer": optimizer.state_dict()})
    return RunDirectory(tmp_path)


def refusal(read) -> str | None:
    """The words of the ValueError that reading raises, or None."""
    try:
        read()
    except ValueError as error:
        return str(error)
    return None


def repacked(path: Path, compression: int, change=lambda name, data: data) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name, change(name, data))


def test_a_checkpoint_comes_back(directory):
    assert directory.load_checkpoint()["step"] == 1
    repacked(directory.checkpoint, zipfile.ZIP_STORED)
    assert directory.load_checkpoint()["step"] == 1


def test_a_checkpoint_that_would_grow_is_refused(directory):
    repacked(directory.checkpoint, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="its parts are compressed, or overlap"):
        directory.load_checkpoint()
    state = {"step": 1, "network": {}, "average": {}, "optimizer": {}}
    for tensor in (torch.zeros(1).expand(1 << 40), torch.zeros(1, device="meta"), torch.zeros(2, 2).to_sparse()):
        torch.save(state | {"network": {"weight": tensor}}, directory.checkpoint)
        with pytest.raises(ValueError, match="must hold tensors and numbers, no larger than their memory"):
            directory.load_checkpoint()


def test_every_flipped_bit_of_a_checkpoint_is_told(directory):
    whole, wanted = directory.checkpoint.read_bytes(), directory.load_checkpoint()["network"]
    with zipfile.ZipFile(directory.checkpoint) as archive:
        last = max(part.header_offset for part in archive.infolist())
    for at in range(100, last, max(1, last // 40)):
        directory.checkpoint.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        words = refusal(directory.load_checkpoint)
        if words is None:  # a bit between the parts, which nobody reads
            held = directory.load_checkpoint()["network"]
            assert all(torch.equal(value, held[name]) for name, value in wanted.items())
        else:
            assert "\n" not in words


def test_formats_that_are_no_archives_are_refused(directory):
    state = directory.load_checkpoint()
    torch.save(state, directory.checkpoint, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"cannot be read; .*\(BadZipFile: File is not a zip file\)"):
        directory.load_checkpoint()


def test_the_optimizer_has_the_state_of_its_parameters_and_keeps_its_rates(directory):
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.5)
    good = directory.load_checkpoint()["optimizer"]
    good["param_groups"][0] |= {"betas": "x", "lr": None}
    _load_moments(optimizer, good)
    assert optimizer.param_groups[0]["lr"] == 0.5
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    for held in ({"exp_avg": torch.zeros(5)}, {"exp_avg_sq": 1}, {"more": torch.zeros(2, 3)}, {"step": torch.zeros(3)}):
        wrong = good | {"state": {0: good["state"][0] | held, 1: good["state"][1]}}
        with pytest.raises(ValueError, match="the optimizer's state must have the shape of its parameter"):
            _load_moments(torch.optim.AdamW(torch.nn.Linear(3, 2).parameters()), wrong)


CONFIG = json.loads(TrainConfig(Path("x")).to_json())
VALUES = [None, True, 1.5, -1, 10**400, "x", [], {}, [1], float("nan")]


@pytest.mark.parametrize("field", CONFIG)
def test_every_field_of_training_json_is_checked(field):
    kept = {"set": [[]], "samples": [None], "threads": [None], "model": ["x"], "preset": ["x"], "conditional": [True]}
    kept |= {"data": [{}], "optimizer": [{}]}  # the defaults
    for value in VALUES:
        words = refusal(lambda value=value: TrainConfig.from_json(json.dumps(CONFIG | {field: value}), Path("x")))
        if words is None:
            assert value in kept.get(field, [])
        else:
            assert words.startswith("what x was asked for cannot be read: ")
            assert "\n" not in words
    for inner in ("data", "optimizer"):
        with pytest.raises(ValueError, match="more: no such field in"):
            TrainConfig.from_json(json.dumps(CONFIG | {inner: CONFIG[inner] | {"more": 1}}), Path("x"))


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, b"\xff\xfe\xfa", "3", "1" * 5000])
def test_text_that_is_no_json_object_is_refused(text):
    with pytest.raises(ValueError, match="what x was asked for cannot be read: it must be"):
        TrainConfig.from_json(text, Path("x"))
    with pytest.raises(ValueError, match="the description of the data cannot be read: it must be"):
        Description.from_json(text)


DESCRIPTION = Description("x", "vector", (2,), 0, standardization=Standardization((0.0, 1.0), (1.0, 2.0)))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "film"}, {"event_shape": [0]}, {"event_shape": []}, {"event_shape": [1 << 30, 1 << 30]},
        {"event_shape": "2"}, {"levels": -1}, {"levels": True}, {"classes": [1]}, {"sample_rate": 0},
        {"sample_rate": "x"}, {"more": 1}, {"standardization": {}}, {"standardization": {"mean": [0], "scale": [1]}},
        {"standardization": {"mean": [0, 0], "scale": [1, 0]}},
        {"standardization": {"mean": [0, 0], "scale": [1, float("nan")]}}, {"standardization": [1]},
    ],
)  # fmt: skip
def test_every_field_of_data_json_is_checked(change):
    assert Description.from_json(DESCRIPTION.to_json()) == DESCRIPTION
    with pytest.raises(ValueError, match="the description of the data cannot be read: "):
        Description.from_json(json.dumps(json.loads(DESCRIPTION.to_json()) | change))


@pytest.mark.parametrize("line", ["{", "3", '{"loss": 1}', '{"step": "x"}', "\udcff"])
def test_a_damaged_line_of_the_metrics_is_named(line, tmp_path):
    directory = RunDirectory(tmp_path)
    directory.metrics.write_bytes(b'{"step": 1}\n' + line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: step must be|metrics\.jsonl, line 2 must be"):
        directory.read_metrics()
