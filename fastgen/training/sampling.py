"""Samples from a run directory, as pictures and sound."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tyro.conf import Positional

from fastgen.data import DataConfig, Description, load, mulaw
from fastgen.data.audio import read, resample
from fastgen.models import Model, from_pretrained
from fastgen.plots.sheet import save_sheet
from fastgen.plots.waveform import save_wav, save_waveforms
from fastgen.training.comparison import Comparison, compare
from fastgen.training.config import TrainConfig
from fastgen.training.directory import RunDirectory


@dataclass(frozen=True)
class SampleConfig:
    run: Positional[Path]
    """Run directory that `fastgen train` wrote."""
    count: int = 64
    seed: int = 0
    temperature: float = 1.0
    top_k: int = 0
    """Draw from the k most probable levels only (categorical models); 0 is off."""
    top_p: float = 1.0
    """Draw from the most probable levels that hold this much probability (categorical models)."""
    label: str | None = None
    """Class of a conditional model, by name; without it the classes take turns."""
    known_rows: int = 0
    """Images: complete test images of which this many rows are kept."""
    prompt_seconds: float = 0.0
    """Audio: continue this much of test recordings, or of the prompt."""
    prompt: Path | None = None
    """Audio: a WAV file to continue."""
    weights: Literal["float32", "bfloat16", "int8"] = "float32"
    """Precision of the weights in the sampler; all but float32 are approximations."""
    threads: int | None = None
    """CPU threads of the sampler; without it what torch takes."""
    naive: bool = False
    """Draw the same with the textbook loop too, and compare."""
    output: Path | None = None
    """Directory for the files; without it the run directory."""
    progress: bool = True

    def __post_init__(self) -> None:
        if self.count < 1 or self.seed < 0 or (self.threads is not None and self.threads < 1):
            raise ValueError(
                f"count {self.count}, seed {self.seed}, threads {self.threads}: "
                "1 or more, 0 or more and 1 or more are allowed"
            )
        if self.naive and self.weights != "float32":
            raise ValueError(f"naive compares with the model's own float32 weights; weights is {self.weights!r}")
        if self.known_rows < 0 or self.prompt_seconds < 0:
            raise ValueError(
                f"known_rows {self.known_rows}, prompt_seconds {self.prompt_seconds}: 0 or more is allowed"
            )
        if self.prompt is not None and not self.prompt.is_file():
            raise FileNotFoundError(f"prompt {self.prompt} is not a file")


@dataclass(frozen=True)
class Samples:
    """``levels`` ``[N, *event_shape]``, the model's ``log_prob`` ``[N]`` of each, the files, and the seconds it took.

    ``naive_seconds`` and ``comparison`` are those of the textbook loop, if it was asked for.
    """

    levels: Tensor
    log_prob: Tensor
    files: tuple[Path, ...]
    seconds: float
    naive_seconds: float | None = None
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Run:
    """What ``fastgen train`` left: the model with averaged weights, what it was asked, and what its data look like."""

    model: Model
    config: TrainConfig
    data: Description


def load_run(path: Path) -> Run:
    """Raises FileNotFoundError where ``path`` is no run directory or holds no model yet."""
    directory = RunDirectory(path)
    for file in (directory.training, directory.data, path / "config.json", path / "model.safetensors"):
        if not file.is_file():
            raise FileNotFoundError(f"{path} is no run directory with a model: {file.name} is missing")
    config = TrainConfig.from_json(directory.training.read_text(), path)
    return Run(from_pretrained(path), config, Description.from_json(directory.data.read_text()))


def sample(config: SampleConfig) -> Samples:
    """Draws from the model of a run and writes ``samples.png``, for audio ``samples.wav`` too.

    Raises ValueError for a request that does not fit the model, before any work.
    """
    run = load_run(config.run)
    altered = {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p}
    run.model.head.check_sampling(**altered)
    known, mask = _known(config, run)
    asked = {"context": _context(config, run), "known": known, "known_mask": mask}
    options = altered | asked | {"return_log_prob": True, "progress": config.progress}
    output = config.output or config.run
    output.mkdir(parents=True, exist_ok=True)
    sampler = run.model.sampler(weights=config.weights)
    started = time.perf_counter()
    levels, log_prob = sampler.sample(config.count, seed=config.seed, threads=config.threads, **options)
    seconds = time.perf_counter() - started
    files = save(levels, run.data, output / "samples")
    if not config.naive:
        return Samples(levels, log_prob, files, seconds)
    started = time.perf_counter()
    naive, _ = sampler.sample_naive(config.count, seed=config.seed, **options)
    naive_seconds = time.perf_counter() - started
    files += save(naive, run.data, output / "samples_naive")
    comparison = compare(run.model, levels, naive, config.seed, asked["context"], **altered)
    return Samples(levels, log_prob, files, seconds, naive_seconds, comparison)


def save(levels: Tensor, data: Description, stem: Path) -> tuple[Path, ...]:
    """Writes levels ``[N, *event_shape]`` as ``stem``.png, for audio with ``stem``.wav."""
    picture, sound = stem.with_suffix(".png"), stem.with_suffix(".wav")
    if data.kind == "image":
        save_sheet(picture, levels, data.levels)
        return (picture,)
    clips = mulaw.decode(levels.reshape(len(levels), -1).cpu().numpy(), data.levels)
    save_wav(sound, clips, data.sample_rate)
    save_waveforms(picture, clips[:8], data.sample_rate)
    return picture, sound


def _context(config: SampleConfig, run: Run) -> Tensor | None:
    classes = run.data.classes
    if not run.config.conditional:
        if config.label is not None:
            raise ValueError(f"label is {config.label!r}, but the model in {config.run} was trained without labels")
        return None
    if config.label is None:
        return torch.arange(config.count) % len(classes)
    if config.label not in classes:
        raise ValueError(f"label is {config.label!r}; {', '.join(classes)} are allowed")
    return torch.full((config.count,), classes.index(config.label))


def _known(config: SampleConfig, run: Run) -> tuple[Tensor | None, Tensor | None]:
    """What is kept, as levels and mask ``[count, *event_shape]``."""
    data, shape = run.data, run.data.event_shape
    if data.kind == "audio" and config.known_rows:
        raise ValueError("known_rows is for images; for audio give prompt_seconds")
    if data.kind == "image" and (config.prompt_seconds or config.prompt):
        raise ValueError("prompt and prompt_seconds are for audio; for images give known_rows")
    if not (config.known_rows or config.prompt_seconds or config.prompt):
        return None, None
    mask = torch.zeros(config.count, *shape, dtype=torch.bool)
    if data.kind == "image":
        if config.known_rows >= shape[1]:
            raise ValueError(
                f"known_rows is {config.known_rows}; at most {shape[1] - 1} are allowed, images have {shape[1]}"
            )
        mask[:, :, : config.known_rows] = True
        return _examples(run.config.data, config.count), mask
    if config.prompt is None:
        known, length = _examples(run.config.data, config.count), round(config.prompt_seconds * data.sample_rate)
    else:
        samples, rate = read(config.prompt)
        encoded = torch.from_numpy(mulaw.encode(resample(samples, rate, data.sample_rate), data.levels)).long()
        length = round(config.prompt_seconds * data.sample_rate) or len(encoded)
        if length > len(encoded):
            raise ValueError(
                f"prompt_seconds is {config.prompt_seconds}; {config.prompt} has {len(samples) / rate:.2f}"
            )
        known = torch.zeros(config.count, *shape, dtype=torch.int64)
        known[:, : min(length, shape[0])] = encoded[: min(length, shape[0])]
    if not 0 < length < shape[0]:
        raise ValueError(
            f"the prompt has {length} samples; 1 to {shape[0] - 1} are allowed, the model draws {shape[0]}"
        )
    mask[:, :length] = True
    return known, mask


def _examples(data: DataConfig, count: int) -> Tensor:
    split = load(data).splits["test"]
    return split.batch(torch.arange(count) % len(split))[0]
