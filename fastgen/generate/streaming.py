"""A sequence of any length, generated in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastgen.generate.arguments import as_tensor, check_integer
from fastgen.generate.ir.program import STREAM
from fastgen.generate.known import given_levels
from fastgen.generate.on_cpu import called_on_cpu
from fastgen.generate.state import State, start_state

if TYPE_CHECKING:
    from fastgen.generate.sampler import Sampler


def stream(
    sampler: Sampler, batch: int, steps: int | None, chunk: int, seed: int, prompt: Tensor | None, options: dict
) -> Iterator[Tensor]:
    """``Sampler.stream``: its arguments, results and errors."""
    if sampler.order.name != "time":
        raise ValueError(f"stream needs order 'time'; this sampler has order {sampler.order.name!r}")
    chunk = check_integer("chunk", chunk, 1)
    prompt = None if prompt is None else as_tensor("prompt", prompt)
    given = 0 if prompt is None or not prompt.dim() else prompt.shape[-1]
    last = sampler.program.steps
    total = last if steps is None else given + check_integer("steps", steps, 1)
    framed = sampler.layout is not None and sampler.layout.frames()
    if not 0 < total <= last or (steps is None and last < STREAM and not framed):
        reason = f"; {sampler.compiled.ends}" if sampler.compiled.ends else ""
        raise ValueError(f"steps must be 1 .. {last - given} for this network{reason}, got {steps}")
    channels = sampler.order.channels
    state = start_state(sampler, batch, seed, None, None, window=max(given, chunk), **options)
    if prompt is not None:
        levels = given_levels(sampler.head, prompt, batch, "prompt", (*sampler.event_shape[:-1], given))
        state.run.levels = levels.reshape(batch, channels, given).clone()
        state.run.known = torch.ones_like(state.run.levels, dtype=torch.bool)
        sampler._machine.absorb(state.run, 0, given)
    return _chunks(sampler, state, given, total, chunk)


def _chunks(sampler: Sampler, state: State, at: int, total: int, chunk: int) -> Iterator[Tensor]:
    while at < total:
        size = min(chunk, total - at)
        yield _next(sampler, state, at, size)
        at += size


@called_on_cpu
def _next(sampler: Sampler, state: State, at: int, size: int) -> Tensor:
    state.run.levels, state.run.known = state.run.levels.new_zeros(*state.run.levels.shape[:2], size), None
    state.run.position0 = at
    sampler._machine.advance(state.run, at, at + size)
    return sampler._levels_out(state.run.levels, (*sampler.event_shape[:-1], size))
