"""The textbook loop: what compiled generation must equal."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastgen.generate.compiled_network import CompiledNetwork
from fastgen.generate.contexts import context_leaves
from fastgen.generate.known import check_prefix, known_levels
from fastgen.generate.machines.batch import check_batch, sample_indices
from fastgen.generate.noise import Noise
from fastgen.generate.options import SamplingOptions
from fastgen.generate.progress import progress_bar


@torch.no_grad()
def sample_naive(
    network: CompiledNetwork,
    n: int,
    seed: int = 0,
    *,
    known: Tensor | None = None,
    known_mask: Tensor | None = None,
    return_log_prob: bool = False,
    return_proposal_log_prob: bool = False,
    progress: bool = False,
    steps: int | None = None,
    **options,
):
    """Runs for every step one forward pass of the whole module, then the head's draws of that step.

    The arguments and results are those of ``Sampler.sample`` (but ``threads``), with ``first_sample`` as in
    ``Sampler.start``; ``steps`` stops early, for timing.

    Raises:
        ValueError: an argument is out of range or of the wrong shape.
        CompileError: the sampler was loaded from a file and has no module.
    """
    request, head, order = network.request, network.head, network.order
    chosen = SamplingOptions.of("sample_naive", options, without=("log_prob", "proposal_log_prob", "threads"))
    n, seed = check_batch(n, seed)
    altered = replace(chosen, log_prob=return_log_prob, proposal_log_prob=return_proposal_log_prob).check(head)
    levels, mask = known_levels(head, order, known, known_mask, n)
    check_prefix(request.prefix, mask)
    contexts = context_leaves(request.layout, chosen.context, n)
    channels, positions = order.channels, order.positions
    shape = (n, *network.event_shape)
    if levels is None:
        levels, mask = (
            torch.zeros(n, channels, positions, dtype=torch.float32),
            torch.zeros(n, channels, positions, dtype=torch.bool),
        )
    inputs = head.to_input(request.levels(levels)).reshape(n, channels, positions).clone()
    samples = sample_indices(chosen.first_sample, n)
    log_prob, proposal = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    total = order.length if steps is None else min(steps, order.length)
    bar = progress_bar(total, "textbook loop") if progress else None
    for step in range(request.prefix, total):
        output = request.forward(inputs.reshape(shape), contexts)
        parameters = head.arrange(output, network.event_shape).float()
        coupled = channels // parameters.shape[2]
        for first, count, position in order.draws[step]:
            group = parameters[:, position, first // coupled : (first + count) // coupled]
            at = slice(None), slice(first, first + count), position
            drawn = head.draw(group, Noise(seed, samples, position, first), levels[at], mask[at], *altered)
            levels[at] = drawn.levels
            inputs[at] = drawn.inputs.to(inputs.dtype)
            log_prob += drawn.log_prob
            proposal += drawn.proposal_log_prob
        if bar is not None:
            bar.update()
    if bar is not None:
        bar.close()
    results = [request.levels(levels)]
    if return_log_prob:
        results.append(log_prob)
    if return_proposal_log_prob:
        results.append(proposal)
    return results[0] if len(results) == 1 else tuple(results)
