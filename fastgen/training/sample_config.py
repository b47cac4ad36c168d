"""The options of ``fastgen sample``, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tyro.conf import Positional

from fastgen.training.comparison import Comparison
from fastgen.training.run import TrainingRun

DEFAULT_COUNTS = {"image": 64, "audio": 8, "vector": 4096}


@dataclass(frozen=True)
class SampleConfig:
    run: Positional[Path]
    """Run directory that `fastgen train` wrote."""
    count: int | None = None
    """Number of samples; without it 64 images, 8 recordings or 4096 vectors."""
    seed: int = 0
    temperature: float = 1.0
    """Sharpens (below 1) or flattens what is drawn from: an element's distribution, for flows the latents' scale."""
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
    """Precision of the weights in the sampler (autoregressive models); all but float32 are approximations."""
    threads: int | None = None
    """CPU threads of the sampler; without it what torch takes."""
    naive: bool = False
    """Draw the same with the textbook loop too, and compare (autoregressive models)."""
    output: Path | None = None
    """Directory for the files; without it the run directory."""
    progress: bool = True

    def __post_init__(self) -> None:
        if (
            (self.count is not None and self.count < 1)
            or self.seed < 0
            or (self.threads is not None and self.threads < 1)
        ):
            raise ValueError(
                f"count and threads must be 1 or more, seed 0 or more, got {self.count}, {self.threads} and {self.seed}"
            )
        if self.naive and self.weights != "float32":
            raise ValueError(
                f"weights must be 'float32' with naive, which compares with the model's own, got {self.weights!r}"
            )
        if self.known_rows < 0 or self.prompt_seconds < 0:
            raise ValueError(
                f"known_rows and prompt_seconds must be 0 or more, got {self.known_rows} and {self.prompt_seconds}"
            )
        if self.prompt is not None and not self.prompt.is_file():
            raise FileNotFoundError(f"prompt must be a file, got {self.prompt}")
        if self.output is not None and self.output.exists() and not self.output.is_dir():
            raise NotADirectoryError(f"output must be a directory, got the file {self.output}")

    def number(self, kind: str) -> int:
        """``count``, or the default for a kind of data."""
        return DEFAULT_COUNTS[kind] if self.count is None else self.count


@dataclass(frozen=True)
class Samples:
    """Levels or real vectors in the data's own units, their ``log_prob`` ``[N]``, the files, and the seconds it took.

    ``values`` is ``[N, *event_shape]``. ``bound`` (levels drawn from a flow): ``log_prob`` is a lower bound,
    by one draw of the dequantization noise. ``naive_seconds`` and ``comparison`` are those of the textbook loop, if it
    was asked for.
    """

    values: Tensor
    log_prob: Tensor
    files: tuple[Path, ...]
    seconds: float
    naive_seconds: float | None = None
    comparison: Comparison | None = None
    bound: bool = False


def labels(config: SampleConfig, run: TrainingRun) -> Tensor | None:
    """The class of every sample, int64 ``[count]``; None for a model without labels."""
    classes, count = run.data.classes, config.number(run.data.kind)
    if not run.config.conditional:
        if config.label is not None:
            raise ValueError(
                f"label must be None for the model in {config.run}, which was trained without labels, got "
                f"{config.label!r}"
            )
        return None
    if config.label is None:
        return torch.arange(count) % len(classes)
    if config.label not in classes:
        raise ValueError(f"label must be one of {', '.join(classes)}, got {config.label!r}")
    return torch.full((count,), classes.index(config.label))
