from __future__ import annotations

import pytest
import torch

from fastgen.training.directory import RunDirectory, replace


def _run(path) -> RunDirectory:
    directory = RunDirectory(path)
    directory.training.write_text("{}")
    directory.save_checkpoint({"step": 3})
    return directory


def test_empty_or_absent_directories_may_be_written(tmp_path):
    RunDirectory(tmp_path).check_writable(overwrite=False)
    RunDirectory(tmp_path / "new").check_writable(overwrite=False)


def test_a_run_is_only_replaced_when_asked(tmp_path):
    directory = _run(tmp_path)
    with pytest.raises(FileExistsError, match=r"not empty: --resume continues .* --overwrite replaces"):
        directory.check_writable(overwrite=False)
    directory.check_writable(overwrite=True)


def test_what_is_no_run_is_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds files but no run"):
        RunDirectory(tmp_path).check_writable(overwrite=True)
    with pytest.raises(NotADirectoryError, match="is a file"):
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
    directory.checkpoint.unlink()
    with pytest.raises(FileNotFoundError, match=r"nothing to resume .*last.pt is missing"):
        directory.check_resumable()


def test_a_broken_checkpoint_is_named(tmp_path):
    directory = _run(tmp_path)
    directory.checkpoint.write_bytes(directory.checkpoint.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"last.pt cannot be read"):
        directory.load_checkpoint()


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path):
    directory = _run(tmp_path)

    def half(temporary):
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace(directory.checkpoint, half)
    assert directory.load_checkpoint() == {"step": 3}


def test_checkpoints_keep_tensors_bitwise(tmp_path):
    directory = RunDirectory(tmp_path)
    state = {"a": torch.randn(5), "b": {"c": torch.arange(3)}, "step": 1}
    directory.save_checkpoint(state)
    loaded = directory.load_checkpoint()
    assert torch.equal(loaded["a"], state["a"])
    assert torch.equal(loaded["b"]["c"], state["b"]["c"])


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
