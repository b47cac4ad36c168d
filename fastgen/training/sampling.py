"""Samples from a run directory, as pictures, sound and tables."""

from __future__ import annotations

import time
from pathlib import Path

from fastgen.models.flows import FlowModel
from fastgen.training.comparison import compare
from fastgen.training.flow_sampling import sample_flow
from fastgen.training.prompts import known_elements
from fastgen.training.run import TrainingRun, load_run
from fastgen.training.sample_config import SampleConfig, Samples, labels
from fastgen.training.sample_files import save


def sample(config: SampleConfig) -> Samples:
    """Draws from the model of a run and writes ``samples.png``, for audio ``samples.wav``, for vectors ``samples.csv``.

    Raises ValueError for a request that does not fit the model, before any work.
    """
    run = load_run(config.run)
    output = config.output or config.run
    if isinstance(run.model, FlowModel):
        return sample_flow(config, run, output)
    return _sample_autoregressive(config, run, output)


def _sample_autoregressive(config: SampleConfig, run: TrainingRun, output: Path) -> Samples:
    altered = {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p}
    run.model.head.check_sampling(**altered)
    known, mask = known_elements(config, run)
    asked = {"context": labels(config, run), "known": known, "known_mask": mask}
    options = altered | asked | {"return_log_prob": True, "progress": config.progress}
    count = config.number(run.data.kind)
    output.mkdir(parents=True, exist_ok=True)
    sampler = run.model.sampler(weights=config.weights)
    started = time.perf_counter()
    levels, log_prob = sampler.sample(count, seed=config.seed, threads=config.threads, **options)
    seconds = time.perf_counter() - started
    files = save(levels, run.data, output / "samples")
    if not config.naive:
        return Samples(levels, log_prob, files, seconds)
    started = time.perf_counter()
    naive, _ = sampler.sample_naive(count, seed=config.seed, **options)
    naive_seconds = time.perf_counter() - started
    files += save(naive, run.data, output / "samples_naive")
    comparison = compare(run.model, levels, naive, config.seed, asked["context"], **altered)
    return Samples(levels, log_prob, files, seconds, naive_seconds, comparison)
