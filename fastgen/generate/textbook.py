"""The textbook loop: what compiled generation must equal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastgen.generate.contexts import context_leaves
from fastgen.generate.known import known_levels
from fastgen.generate.machines.batch import check_batch
from fastgen.generate.noise import Noise
from fastgen.generate.progress import progress_bar

if TYPE_CHECKING:
    from fastgen.generate.sampler import Sampler


@torch.no_grad()
def sample_naive(
    sampler: Sampler,
    n: int,
    seed: int = 0,
    *,
    known: Tensor | None = None,
    known_mask: Tensor | None = None,
    context=None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    return_log_prob: bool = False,
    return_proposal_log_prob: bool = False,
    progress: bool = False,
    steps: int | None = None,
):
    """For every step one forward pass of the whole module, then the head's draw at that step's position.

    The arguments and results are those of ``Sampler.sample``; ``steps`` stops early, for timing.

    Raises:
        ValueError: an argument is out of range or of the wrong shape.
        CompileError: the sampler was loaded from a file and has no module.
    """
    head, order = sampler.head, sampler.order
    n, seed = check_batch(n, seed)
    head.check_sampling(temperature, top_k, top_p, scored=return_log_prob or return_proposal_log_prob)
    levels, mask = known_levels(head, sampler.event_shape, order, known, known_mask, n)
    contexts = context_leaves(sampler.layout, context, n)
    channels, positions = order.channels, order.positions
    shape = (n, *sampler.event_shape)
    if levels is None:
        levels, mask = (
            torch.zeros(n, channels, positions, dtype=torch.float32),
            torch.zeros(n, channels, positions, dtype=torch.bool),
        )
    inputs = head.to_input(sampler._levels_out(levels)).reshape(n, channels, positions).clone()
    samples = torch.arange(n)
    log_prob, proposal = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    sites = sorted((int(order.steps[c, p]), p, c) for p in range(positions) for c in range(channels))
    by_step: dict[int, list[tuple[int, int]]] = {}
    for step, position, channel in sites:
        by_step.setdefault(step, []).append((position, channel))
    total = len(by_step) if steps is None else min(steps, len(by_step))
    bar = progress_bar(total, "textbook loop") if progress else None
    for step in range(total):
        output = sampler.forward(inputs.reshape(shape), contexts)
        parameters = head.arrange(output, sampler.event_shape).float()
        position, first = by_step[step][0]
        drawn_channels = [c for _, c in by_step[step]]
        group = parameters[:, position] if len(drawn_channels) == channels else parameters[:, position, drawn_channels]
        at = slice(None), drawn_channels, position
        noise = Noise(seed, samples, position, first)
        drawn = head.draw(group, noise, levels[at], mask[at], temperature, top_k, top_p)
        levels[at] = drawn.levels
        inputs[at] = drawn.inputs.to(inputs.dtype)
        log_prob += drawn.log_prob
        proposal += drawn.proposal_log_prob
        if bar is not None:
            bar.update()
    if bar is not None:
        bar.close()
    results = [sampler._levels_out(levels)]
    if return_log_prob:
        results.append(log_prob)
    if return_proposal_log_prob:
        results.append(proposal)
    return results[0] if len(results) == 1 else tuple(results)
