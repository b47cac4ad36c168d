"""``fastgen.generate.verify``: tries out a network of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from fastgen.generate.arguments import check_integer
from fastgen.generate.compile.inputs import with_input
from fastgen.generate.contexts import ContextLayout
from fastgen.generate.frontend.adapted import check_made
from fastgen.generate.frontend.untouched import borrowed
from fastgen.generate.heads import Head
from fastgen.generate.inspect.receptive_field import receptive_field, shown_position
from fastgen.generate.on_cpu import called_on_cpu
from fastgen.generate.report.influence import Influence, find_influence
from fastgen.generate.report.outputs import Outputs
from fastgen.generate.report.perturbation import Leaks, find_leaks, is_repeatable, mixes_samples
from fastgen.generate.report.program_check import check_program
from fastgen.generate.report.report import Report
from fastgen.generate.request import CompileRequest
from fastgen.generate.sampler import Sampler

_MOST_ELEMENTS = 1 << 18
"""Of all events of the leak test together; at least so many events, and at most:"""
_FEWEST, _MOST = 64, 1024
_BATCH = 32
_BATCH_NUMBERS = 1 << 22
"""Parameters of a batch."""
_NEAREST = 256
"""Elements that are changed one by one."""


@called_on_cpu
def verify(
    module: nn.Module,
    event_shape: Sequence[int],
    head: Head,
    order: str | Sequence[int] = "raster",
    predicts: str = "same",
    adapter: Callable | None = None,
    example_context=None,
    start: float = 0.0,
    *,
    samples: int = 4,
    seed: int = 0,
    machine: str | None = None,
    threads: int | None = None,
) -> Report:
    r"""Tries out whether a network is causal, whether it compiles, and whether the program is the network.

    1. Elements of random events are changed, and the outputs compared: with output o drawn at step s(o), the network is
       causal where :math:`\partial o / \partial x_u = 0` for every element u of step s(u) >= s(o). This needs no
       compiler, and works for any module that can be called; it also finds the earlier elements that one output
       misses (blind spots). Up to 256 steps all are tried (of large events fewer), else the first and last, those at
       the borders of images, and random ones.
    2. ``fastgen.Sampler`` compiles the network, which decides causality for all elements by ready times, or says what
       it refuses, where, and what to change.
    3. The program reads random levels, and every parameter is compared with the module's in float64.
    4. Samples are compared with the textbook loop's. Of long events the first steps are drawn.

    The module is used in eval mode, and left as it was.

    Args:
        module, event_shape, head, order, predicts, adapter, example_context, start, machine, threads: as
            ``fastgen.Sampler`` takes them. The contexts of steps 1 and 4 are the first of ``example_context``.
        samples: how many samples are compared.
        seed: of the random levels and the samples.

    Returns:
        A ``Report``, which is true where everything was tried and found right. A network that is not compiled is not
        found right, but the report says whether it is causal.

    Raises:
        ValueError: an argument is out of range, or the network's output has a layout that the head does not read.
        CompileError: the network cannot be called.

    Example::

        >>> from fastgen.generate import verify
        >>> masked = fastgen.nn.MaskedConv2d(1, 16, 3, mask="A")
        >>> report = verify(masked, (1, 6, 6), fastgen.heads.Categorical(16))
        >>> report.passed, report.leaks.count
        (True, 0)
        >>> print(verify(torch.nn.Conv2d(1, 16, 3, padding=1), (1, 6, 6), fastgen.heads.Categorical(16)).verdict)
        FAILED: not causal
    """
    samples, seed = check_integer("samples", samples, 1), check_integer("seed", seed, 0, (1 << 63) - 1)
    if not isinstance(module, nn.Module):
        raise ValueError(f"module must be a torch.nn.Module, got a {type(module).__name__}")
    check_made(module)
    layout = ContextLayout(example_context) if example_context is not None else None
    request = replace(
        CompileRequest.checked(None, event_shape, head, order, predicts, adapter, layout, start), module=module
    )
    rows = min(_MOST, max(_FEWEST, _MOST_ELEMENTS // (request.order.positions * request.order.channels)))
    with borrowed(request.network):
        context = None if layout is None else layout.example(2)
        read = with_input(request.head, request.network, (2, *request.event_shape), context)
        outputs = Outputs.of(replace(request, head=read), _batch(read, request))
        generator = torch.Generator().manual_seed(seed)
        repeatable = is_repeatable(outputs, generator)
        mixing = repeatable and mixes_samples(outputs, generator)
        leaks = find_leaks(outputs, generator, rows) if repeatable and not mixing else None
        influence = None if leaks is None else _influence(outputs, leaks, generator)
    options = {
        "order": order, "predicts": predicts, "adapter": adapter, "example_context": example_context, "start": start,
        "machine": machine, "threads": threads,
    }  # fmt: skip
    program, sampler = None, None
    if repeatable:
        drawn = 2 if outputs.only_pairs else samples
        program, sampler = check_program(module, event_shape, head, options, drawn, seed, max(rows // drawn, 1))
    if influence is not None and sampler is not None:
        influence = _structural(influence, sampler)
    title = f"{type(module).__name__}, event {request.event_shape}, order {request.order.name!r}"
    return Report(title, request.order, repeatable, mixing, leaks, influence, program)


def _batch(head: Head, request: CompileRequest) -> int:
    """Returns how many events are computed at once: an even number."""
    numbers = request.order.positions * request.order.channels * max(head.levels, 1)
    return 2 * max(1, min(_BATCH, _BATCH_NUMBERS // numbers) // 2)


def _influence(outputs: Outputs, leaks: Leaks, generator: torch.Generator) -> Influence:
    """Returns what changes the output that ``explain`` shows; where others leak and it does not, the worst of them."""
    order = outputs.order
    channel, position = 0, int(np.ravel_multi_index(shown_position(order), order.grid))
    if leaks.count and not leaks.sizes[channel, position]:
        channel, position = divmod(int(leaks.sizes.argmax()), order.positions)
    return find_influence(outputs, channel, position, bool(leaks.count), generator, _NEAREST)


def _structural(influence: Influence, sampler: Sampler) -> Influence:
    analysis = sampler.compiled.analysis
    if analysis is None or analysis.event_shape != sampler.event_shape:
        return influence
    shown = influence.output
    field = receptive_field(analysis, sampler.request.shift, shown.position, shown.channel)
    return influence.without(torch.from_numpy(field.seen).reshape(influence.blind.shape))
