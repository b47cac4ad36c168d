"""One draw of a generation by the head in Python: of every element of a position, for the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.generate.heads import Head
from fastgen.generate.machines.batch import GenerationBatch
from fastgen.generate.noise import Noise


@torch.no_grad()
def draw_position(
    head: Head, run: GenerationBatch, parameters: Tensor, position: int, channel0: int, channels: int
) -> Tensor:
    """Draws, keeps or scores some channels of a position, in place in ``run``.

    Args:
        head: draws.
        run: its ``levels`` are written where they are not known, and its log-probabilities added to.
        parameters: float32 ``[B, n]``: what the head reads of the network's output, group by group.
        position: which, in natural order; the noise counts by it.
        channel0, channels: which channels.

    Returns:
        What the network reads of them: float32 ``[B, channels]``.

    Raises:
        ValueError: ``run.levels`` does not hold the position; or as ``Head.draw``.
    """
    held = run.levels.shape[2]
    if not 0 <= position - run.position0 < held:
        places = f"{run.position0} .. {run.position0 + held - 1}"
        raise ValueError(f"levels holds the positions {places}; position {position} is drawn")
    at = slice(None), slice(channel0, channel0 + channels), position - run.position0
    levels = run.levels[at]
    drawn = head.draw(
        parameters.unflatten(-1, (channels // (head.coupled or channels), -1)),
        Noise(run.seed, run.samples, position, channel0),
        levels,
        torch.zeros_like(levels, dtype=torch.bool) if run.known is None else run.known[at],
        run.temperature,
        run.top_k,
        run.top_p,
        scored=run.log_prob is not None or run.proposal_log_prob is not None,
    )
    levels.copy_(drawn.levels)
    if run.log_prob is not None:
        run.log_prob += drawn.log_prob
    if run.proposal_log_prob is not None:
        run.proposal_log_prob += drawn.proposal_log_prob
    return drawn.inputs
