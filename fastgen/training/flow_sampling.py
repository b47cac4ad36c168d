"""Samples from a trained flow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from math import inf
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from fastgen.data import load
from fastgen.models.flows import FlowModel
from fastgen.plots.plane import Plane, save_plane
from fastgen.training.run import TrainingRun
from fastgen.training.sample_config import SampleConfig, Samples, labels
from fastgen.training.sample_files import save

ONLY_AUTOREGRESSIVE = ("top_k", "top_p", "known_rows", "prompt_seconds", "prompt", "weights", "naive")
BATCH = 256


def sample_flow(config: SampleConfig, run: TrainingRun, output: Path) -> Samples:
    """Draws from a flow and writes the samples, for vectors of two numbers a picture of the density too.

    Raises ValueError for a request that does not fit the model, before any work; ``NoSamples`` where the inverse
    overflows, with nothing written.
    """
    for field in fields(config):
        if field.name in ONLY_AUTOREGRESSIVE and (given := getattr(config, field.name)) != field.default:
            raise ValueError(
                f"{field.name} must be {field.default!r} for the flow {run.model.name} (it is for autoregressive "
                f"models), got {given!r}"
            )
    if not 0 < config.temperature < inf:
        raise ValueError(f"temperature must be a finite number above 0, got {config.temperature}")
    context = labels(config, run)
    with _threads(config.threads):
        started = time.perf_counter()
        values = _draw(config, run.model, config.number(run.data.kind), context)
        seconds = time.perf_counter() - started
        log_prob = _score(config, run.model, values, context)
        if run.data.standardization is not None:
            values = run.data.standardization.undo(values)
            log_prob = log_prob + run.data.standardization.log_det
        output.mkdir(parents=True, exist_ok=True)
        files = save(values, run.data, output / "samples")
        if run.data.kind == "vector" and run.data.event_shape == (2,):
            files += (_save_plane(output / "samples.png", run, values, context),)
    return Samples(values, log_prob, files, seconds, bound=bool(run.data.levels))


def _draw(config: SampleConfig, model: FlowModel, count: int, context: Tensor | None) -> Tensor:
    starts = tqdm(range(0, count, BATCH), desc="sample", disable=not config.progress)
    return torch.cat(
        [
            model.sample(
                min(BATCH, count - start),
                config.seed,
                None if context is None else context[start : start + BATCH],
                temperature=config.temperature,
                offset=start,
            )
            for start in starts
        ]
    )


@torch.no_grad()
def _score(config: SampleConfig, model: FlowModel, values: Tensor, context: Tensor | None) -> Tensor:
    """Log-probability ``[N]`` of what was drawn, or its bound, whose noise is that of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        contexts = [None] * len(values) if context is None else context.split(BATCH)
        parts = zip(values.split(BATCH), contexts, strict=False)
        return torch.cat([model.score(part, own) for part, own in parts])


@torch.no_grad()
def _save_plane(path: Path, run: TrainingRun, samples: Tensor, context: Tensor | None) -> Path:
    """The model's density beside its samples, and beside the data and their true density, where these can be read."""
    try:
        dataset = load(run.config.data)
    except FileNotFoundError:
        dataset = None
    own = run.data.standardization
    held_out = None if dataset is None else own.undo(dataset.splits["test"].values)
    plane = Plane.around(samples if held_out is None else held_out)
    densities = {}
    if dataset is not None and dataset.log_density is not None:
        densities["true density"] = dataset.log_density(plane.points)
    densities[f"density of {run.model.name}"] = _log_density(run.model, own.apply(plane.points), context) + own.log_det
    points = {} if held_out is None else {"data (test split)": held_out[: len(samples)]}
    save_plane(path, plane, densities, points | {"samples": samples}, run.data.columns)
    return path


def _log_density(model: FlowModel, points: Tensor, context: Tensor | None) -> Tensor:
    """Returns log-densities of points ``[M, 2]``; with labels, of the mixture of the classes in ``context``."""
    classes = [None] if context is None else context.unique().split(1)
    each = [
        torch.cat([model.log_prob(part, None if c is None else c.expand(len(part))) for part in points.split(4096)])
        for c in classes
    ]
    weights = torch.tensor([1.0 if c is None else (context == c).double().mean() for c in classes])
    return torch.stack([log_prob + weight.log() for log_prob, weight in zip(each, weights, strict=True)]).logsumexp(0)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
