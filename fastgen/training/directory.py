"""A run's directory: its files, when it may be written, and how, so that a kill leaves the old file or the new one."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fastgen.fields import one_line, parse_object
from fastgen.models.saved_weights import is_dense


@dataclass(frozen=True)
class RunDirectory:
    """``config.json`` and ``model.safetensors`` (the averaged weights), ``training.json`` (what was asked for),
    ``data.json`` (what a sample is), ``checkpoint/last.pt``, ``metrics.jsonl``, ``curves.png``, and the samples."""

    path: Path

    @property
    def training(self) -> Path:
        return self.path / "training.json"

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint" / "last.pt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    def check_writable(self, overwrite: bool) -> None:
        """Raises FileExistsError or NotADirectoryError where a new run must not be written."""
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"output must be a directory, got the file {self.path}")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if not overwrite:
            raise FileExistsError(
                f"output must be empty (--resume continues the run in it, --overwrite replaces it), got {self.path}"
            )
        if not self.training.is_file():
            raise FileExistsError(
                f"output {self.path} holds files but no run (no {self.training.name}): nothing is replaced"
            )

    def check_resumable(self) -> None:
        """Raises FileNotFoundError where there is no checkpoint."""
        for file in (self.training, self.data, self.checkpoint):
            if not file.is_file():
                raise FileNotFoundError(f"nothing to resume in {self.path}: {file.relative_to(self.path)} is missing")

    def clear(self) -> None:
        """Removes the files of an earlier run, and no others."""
        shutil.rmtree(self.checkpoint.parent, ignore_errors=True)
        for file in (
            self.training,
            self.data,
            self.metrics,
            self.curves,
            *(file for suffix in ("png", "wav", "csv") for file in self.path.glob(f"samples*.{suffix}")),
        ):
            file.unlink(missing_ok=True)
        for name in ("config.json", "model.safetensors"):
            (self.path / name).unlink(missing_ok=True)

    def remove_partial(self) -> None:
        """Removes what a killed process had begun to write."""
        for folder in (self.path, self.checkpoint.parent):
            for file in folder.glob(".*.partial"):
                file.unlink(missing_ok=True)
            for left in folder.glob(".partial-*"):
                shutil.rmtree(left, ignore_errors=True)

    def write_text(self, path: Path, text: str) -> None:
        """Replaces one of the run's files whole."""
        replace(path, lambda temporary: temporary.write_text(text))

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Raises OSError where it cannot be written whole; the checkpoint before is kept then."""
        replace(self.checkpoint, lambda temporary: torch.save(state, temporary))

    def load_checkpoint(self) -> dict[str, Any]:
        """The last checkpoint, on the CPU. Raises ValueError if it cannot be read, or is none of ``fastgen train``."""
        try:
            _check_archive(self.checkpoint)
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises what pickle and zipfile raise, of any kind
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise ValueError(
                f"checkpoint {self.checkpoint} cannot be read; it is damaged, or no checkpoint ({reason})"
            ) from error
        wanted = {"step": int, "network": dict, "average": dict, "optimizer": dict}
        held = list(state) if isinstance(state, dict) else type(state).__name__
        if not isinstance(state, dict) or any(not isinstance(state.get(name), kind) for name, kind in wanted.items()):
            raise ValueError(
                f"checkpoint {self.checkpoint} must hold {', '.join(wanted)}, as fastgen train writes them, got {held}"
            )
        if not _plain(state):
            raise ValueError(f"checkpoint {self.checkpoint} must hold tensors and numbers, no larger than their memory")
        if isinstance(state["step"], bool) or state["step"] < 0:
            raise ValueError(f"checkpoint {self.checkpoint}: step must be 0 or more, got {state['step']!r}")
        return state

    def save_model(self, model) -> None:
        """``config.json`` and ``model.safetensors``, each replaced whole."""
        with tempfile.TemporaryDirectory(dir=self.path, prefix=".partial-") as temporary:
            with _as_os_error(self.path / "model.safetensors"):
                model.save_pretrained(temporary)
            for file in Path(temporary).iterdir():
                os.replace(file, self.path / file.name)

    def append_metrics(self, row: dict[str, Any]) -> None:
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows written so far; a last line cut off by a kill is left out."""
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_bytes().decode(errors="replace").split("\n")
        rows = [parse_object(line, f"{self.metrics}, line {number + 1}") for number, line in enumerate(lines[:-1])]
        for number, row in enumerate(rows):
            if type(row.get("step")) is not int:
                raise ValueError(f"{self.metrics}, line {number + 1}: step must be an integer, got {row.get('step')!r}")
        return rows

    def rewind_metrics(self, step: int) -> None:
        """Drops rows later than ``step``: the resumed run writes them again."""
        rows = [json.dumps(row) + "\n" for row in self.read_metrics() if row["step"] <= step]
        replace(self.metrics, lambda temporary: temporary.write_text("".join(rows)))


def _plain(value: Any, depth: int = 0) -> bool:
    """Returns whether a value is made of numbers, texts and tensors that take as much memory as they say."""
    if isinstance(value, torch.Tensor):
        return is_dense(value)
    if isinstance(value, dict | list | tuple):
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        return depth < 16 and all(_plain(part, depth + 1) for part in parts)
    return value is None or isinstance(value, bool | int | float | str)


def _check_archive(path: Path) -> None:
    """Raises ValueError or zipfile.BadZipFile unless ``path`` is what torch.save writes: a zip file with right
    checksums whose parts are stored as they are, so that reading it takes no more memory than the file has."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
        if not stored or sum(part.file_size for part in parts) > path.stat().st_size:
            raise ValueError("its parts are compressed, or overlap")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Calls ``write`` with a temporary path, flushes it to disk and moves it to ``path`` in one step.

    Raises OSError where that fails, on a full disk for one; nothing is left behind, and ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with _as_os_error(path):
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _as_os_error(path: Path) -> Iterator[None]:
    """torch and safetensors have errors of their own for a disk that is full."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise OSError(f"{path} cannot be written (is the disk full?): {reason}") from error
