from __future__ import annotations

import pickle

import pytest
import torch

from fastgen.training.directory import RunDirectory, replace

STATE = {"step": 3, "network": {}, "average": {}, "optimizer": {}}


def _run(path) -> RunDirectory:
    directory = RunDirectory(path)
    directory.training.write_text("{}")
    directory.data.write_text("{}")
    directory.save_checkpoint(STATE)
    return directory


def test_empty_or_absent_directories_may_be_written(tmp_path):
    RunDirectory(tmp_path).check_writable(overwrite=False)
    RunDirectory(tmp_path / "new").check_writable(overwrite=False)


def test_a_run_is_only_replaced_when_asked(tmp_path):
    directory = _run(tmp_path)
    with pytest.raises(FileExistsError, match=r"output must be empty \(--resume continues .* --overwrite replaces"):
        directory.check_writable(overwrite=False)
    directory.check_writable(overwrite=True)


def test_what_is_no_run_is_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds files but no run"):
        RunDirectory(tmp_path).check_writable(overwrite=True)
    with pytest.raises(NotADirectoryError, match="output must be a directory, got the file"):
        RunDirectory(tmp_path / "thesis.txt").check_writable(overwrite=True)


def test_clear_removes_the_run_and_nothing_else(tmp_path):
    directory = _run(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    directory.append_metrics({"step": 1})
    directory.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_resume_needs_a_checkpoint(tmp_path):
    directory = _run(tmp_path)
    directory.check_resumable()
    for file, name in ((directory.data, "data.json"), (directory.checkpoint, "last.pt")):
        kept = file.read_bytes()
        file.unlink()
        with pytest.raises(FileNotFoundError, match=f"nothing to resume .*{name} is missing"):
            directory.check_resumable()
        file.write_bytes(kept)


def test_a_broken_checkpoint_is_named(tmp_path):
    directory = _run(tmp_path)
    directory.checkpoint.write_bytes(directory.checkpoint.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"last.pt cannot be read"):
        directory.load_checkpoint()


class _Foreign:
    pass


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_text("hello"), r"cannot be read; it is damaged, or no checkpoint \("),
        (lambda path: path.write_bytes(b""), r"cannot be read; it is damaged, or no checkpoint \("),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), r"cannot be read; it is damaged, or no checkpoint \("),
        (
            lambda path: path.write_bytes(pickle.dumps(_Foreign())),
            r"cannot be read; it is damaged, or no checkpoint \(",
        ),
        (lambda path: torch.save({"state_dict": {}}, path), r"must hold step, .* got \['state_dict'\]"),
        (lambda path: torch.save([1], path), "must hold step, network, average, optimizer, .* got list"),
        (lambda path: torch.save(STATE | {"step": 2.5}, path), "must hold step"),
        (lambda path: torch.save(STATE | {"step": -1}, path), ": step must be 0 or more, got -1"),
    ],
)
def test_what_is_no_checkpoint_is_named_in_one_line(tmp_path, write, message):
    """reports_resume_damaged"""
    directory = _run(tmp_path)
    write(directory.checkpoint)
    with pytest.raises(ValueError, match=f"last.pt ?{message}") as caught:
        directory.load_checkpoint()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("[enforce fail at inline_container.cc]\nframe #0"), OSError(28, "full")]
)
def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch, error):
    directory = _run(tmp_path)

    def full(state, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"last.pt cannot be written \(is the disk full\?\): .*") as caught:
        directory.save_checkpoint(STATE)
    assert "\n" not in str(caught.value)
    assert directory.load_checkpoint() == STATE


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    directory = _run(tmp_path)
    directory.checkpoint.with_name(".last.pt.partial").write_text("half")
    (tmp_path / ".partial-1").mkdir()
    (tmp_path / ".data.json.partial").write_text("half")
    directory.remove_partial()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"training.json", "data.json", "checkpoint", "checkpoint/last.pt"}


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path):
    directory = _run(tmp_path)

    def half(temporary):
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace(directory.checkpoint, half)
    assert directory.load_checkpoint() == STATE
    assert [path.name for path in directory.checkpoint.parent.iterdir()] == ["last.pt"]


def test_checkpoints_keep_tensors_bitwise(tmp_path):
    directory = RunDirectory(tmp_path)
    state = STATE | {"network": {"a": torch.randn(5)}, "optimizer": {"b": {"c": torch.arange(3)}}}
    directory.save_checkpoint(state)
    loaded = directory.load_checkpoint()
    assert torch.equal(loaded["network"]["a"], state["network"]["a"])
    assert torch.equal(loaded["optimizer"]["b"]["c"], state["optimizer"]["b"]["c"])


def test_metrics_are_rewound_and_survive_a_cut_line(tmp_path):
    directory = RunDirectory(tmp_path)
    assert directory.read_metrics() == []
    for step in (10, 20, 30):
        directory.append_metrics({"step": step})
    with directory.metrics.open("a") as file:
        file.write('{"step": 4')
    assert [row["step"] for row in directory.read_metrics()] == [10, 20, 30]
    directory.rewind_metrics(20)
    directory.append_metrics({"step": 25})
    assert [row["step"] for row in directory.read_metrics()] == [10, 20, 25]
