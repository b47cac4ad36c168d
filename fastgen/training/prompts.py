"""The known parts of a sample: rows of real images, the beginning of a recording."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.data import DataConfig, load, mulaw
from fastgen.data.audio import read, resample
from fastgen.training.run import TrainingRun
from fastgen.training.sample_config import SampleConfig


def known_elements(config: SampleConfig, run: TrainingRun) -> tuple[Tensor | None, Tensor | None]:
    """Returns what is known, as levels and mask ``[count, *event_shape]``; None for both where nothing is."""
    data, shape, count = run.data, run.data.event_shape, config.number(run.data.kind)
    if data.kind == "audio" and config.known_rows:
        raise ValueError(f"known_rows must be 0 for audio (give prompt_seconds), got {config.known_rows}")
    if data.kind == "image" and (config.prompt_seconds or config.prompt):
        raise ValueError(
            f"prompt and prompt_seconds must be left out for images (give known_rows), got {config.prompt} and "
            f"{config.prompt_seconds}"
        )
    if not (config.known_rows or config.prompt_seconds or config.prompt):
        return None, None
    mask = torch.zeros(count, *shape, dtype=torch.bool)
    if data.kind == "image":
        if config.known_rows >= shape[1]:
            raise ValueError(
                f"known_rows must be at most {shape[1] - 1} for images of {shape[1]} rows, got {config.known_rows}"
            )
        mask[:, :, : config.known_rows] = True
        return _examples(run.config.data, count), mask
    if config.prompt is None:
        known, length = _examples(run.config.data, count), round(config.prompt_seconds * data.sample_rate)
    else:
        samples, rate = read(config.prompt)
        encoded = torch.from_numpy(mulaw.encode(resample(samples, rate, data.sample_rate), data.levels)).long()
        length = round(config.prompt_seconds * data.sample_rate) or len(encoded)
        if length > len(encoded):
            raise ValueError(
                f"prompt_seconds must be at most {len(samples) / rate:.2f}, the length of {config.prompt}, got "
                f"{config.prompt_seconds}"
            )
        known = torch.zeros(count, *shape, dtype=torch.int64)
        known[:, : min(length, shape[0])] = encoded[: min(length, shape[0])]
    if not 0 < length < shape[0]:
        raise ValueError(
            f"the prompt must have 1 to {shape[0] - 1} samples, as the model draws {shape[0]} (prompt_seconds takes a "
            f"part of it), got {length}"
        )
    mask[:, :length] = True
    return known, mask


def _examples(data: DataConfig, count: int) -> Tensor:
    split = load(data).splits["test"]
    return split.batch(torch.arange(count) % len(split))[0]
