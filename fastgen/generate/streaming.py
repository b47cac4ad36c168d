"""A sequence of any length, generated in chunks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgen.generate.arguments import as_tensor, check_integer
from fastgen.generate.compiled_network import CompiledNetwork
from fastgen.generate.ir.program import STREAM
from fastgen.generate.known import given_levels
from fastgen.generate.on_cpu import called_on_cpu
from fastgen.generate.options import SamplingOptions
from fastgen.generate.state import State, start_state


def stream(
    network: CompiledNetwork,
    batch: int,
    steps: int | None,
    chunk: int,
    seed: int,
    prompt: Tensor | None,
    options: SamplingOptions,
) -> Iterator[Tensor]:
    """``Sampler.stream``: its arguments, results and errors."""
    if network.order.name != "time":
        raise ValueError(f"stream needs order 'time'; this sampler has order {network.order.name!r}")
    chunk = check_integer("chunk", chunk, 1)
    prompt = None if prompt is None else as_tensor("prompt", prompt)
    given = 0 if prompt is None or not prompt.dim() else prompt.shape[-1]
    last = network.program.steps
    total = last if steps is None else given + check_integer("steps", steps, 1)
    framed = network.request.layout is not None and network.request.layout.frames()
    if not 0 < total <= last or (steps is None and last < STREAM and not framed):
        reason = f"; {network.compiled.ends}" if network.compiled.ends else ""
        raise ValueError(f"steps must be 1 .. {last - given} for this network{reason}, got {steps}")
    channels = network.order.channels
    levels = known = None
    if prompt is not None:
        levels = given_levels(network.head, prompt, batch, "prompt", (*network.event_shape[:-1], given))
        levels = levels.reshape(batch, channels, given).clone()
        known = torch.ones_like(levels, dtype=torch.bool)
    state = start_state(network, batch, seed, levels, known, options, window=chunk)
    if prompt is not None:
        network.machine.absorb(state.run, 0, given)
    return _chunks(network, state, given, total, chunk)


def _chunks(network: CompiledNetwork, state: State, at: int, total: int, chunk: int) -> Iterator[Tensor]:
    while at < total:
        size = min(chunk, total - at)
        yield _next(network, state, at, size)
        at += size


@called_on_cpu
def _next(network: CompiledNetwork, state: State, at: int, size: int) -> Tensor:
    state.run.levels, state.run.known = state.run.levels.new_zeros(*state.run.levels.shape[:2], size), None
    state.run.position0 = at
    network.machine.advance(state.run, at, at + size)
    return network.request.levels(state.run.levels, (*network.event_shape[:-1], size))
