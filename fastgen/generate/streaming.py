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
    order = network.order
    if not order.is_sequence and order.name != "delayed":
        wanted = "order 'time' or 'time-channels', or Delayed"
        raise ValueError(f"stream needs {wanted}; this sampler has order {order.name!r}")
    chunk = check_integer("chunk", chunk, 1)
    prompt = None if prompt is None else as_tensor("prompt", prompt)
    given = 0 if prompt is None or not prompt.dim() else prompt.shape[-1]
    lag = _lag(network)
    last = network.program.steps // order.steps_per_position - lag
    total = last if steps is None else given + check_integer("steps", steps, 1)
    framed = network.request.layout is not None and network.request.layout.frames()
    if not 0 < total <= last or (steps is None and last < STREAM and not framed):
        reason = f"; {network.compiled.ends}" if network.compiled.ends else ""
        raise ValueError(f"steps must be 1 .. {last - given} for this network{reason}, got {steps}")
    channels = network.order.channels
    levels = known = None
    if prompt is not None:
        levels = given_levels(network.head, prompt, batch, "prompt", (*network.event_shape[:-1], given))
        levels = torch.nn.functional.pad(levels.reshape(batch, channels, given), (0, lag))
        known = torch.arange(given + lag).expand_as(levels) < given
    state = start_state(network, batch, seed, levels, known, options, window=chunk + lag)
    if prompt is not None:
        network.machine.absorb(state.run, 0, given * order.steps_per_position)
    return _chunks(network, state, given, total, chunk)


def _chunks(network: CompiledNetwork, state: State, at: int, total: int, chunk: int) -> Iterator[Tensor]:
    while at < total:
        size = min(chunk, total - at)
        yield _next(network, state, at, size)
        at += size


@called_on_cpu
def _next(network: CompiledNetwork, state: State, at: int, size: int) -> Tensor:
    run, lag, each = state.run, _lag(network), network.order.steps_per_position
    first = max(0, run.step // each - lag)  # the first position that the steps to come may draw
    begin, end = first - run.position0, run.levels.shape[2]
    kept, known = run.levels[:, :, begin:end], None if run.known is None else run.known[:, :, begin:end]
    run.levels = run.levels.new_zeros(*run.levels.shape[:2], at + size + lag - first)
    run.levels[:, :, : kept.shape[2]] = kept[:, :, : run.levels.shape[2]]
    run.known = None
    if known is not None and bool(known.any()):
        run.known = torch.zeros_like(run.levels, dtype=torch.bool)
        run.known[:, :, : known.shape[2]] = known[:, :, : run.levels.shape[2]]
    run.position0 = first
    network.machine.advance(run, run.step, (at + size) * each + lag)
    drawn = run.levels[:, :, at - first : at - first + size]
    return network.request.levels(drawn, (*network.event_shape[:-1], size))


def _lag(network: CompiledNetwork) -> int:
    """Returns the steps from the first channel's draw of a position to the last one's."""
    return 0 if network.order.rule is None else network.order.length - network.order.positions
