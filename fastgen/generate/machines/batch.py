"""One generation in flight: what a machine reads and writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from fastgen.generate.arguments import check_integer

MOST_SAMPLES = 1 << 48
"""Sample indices of the noise are below it."""
FEW_SAMPLES = 2
"""A step of up to so many samples is bound by reading weights, so that summing several cells at once pays."""


@dataclass
class GenerationBatch:
    """The batch, the noise and the results of one generation.

    Machines advance it in place; whoever made it validates it. A copy of ``state`` is all that a fork needs besides the
    numbers here.
    """

    state: Tensor
    """float32 ``[B, state_stride]``, ``state_stride >= program.state_size``."""
    contexts: list[Tensor]
    """One float32 ``[B, P, C]`` tensor, contiguous, per number of a CONTEXT buffer."""
    seed: int
    samples: Tensor
    """int64 ``[B]``: sample indices for the noise."""
    levels: Tensor
    """float32 ``[B, C, n]``, output: levels (or values) of the natural positions ``position0 .. position0 + n``."""
    position0: int = 0
    known: Tensor | None = None
    """bool ``[B, C, n]``: where True, ``levels`` holds the value already and it is kept."""
    log_prob: Tensor | None = None
    """float64 ``[B]``, added to: the model's log-probability, at temperature 1, of what was drawn or known."""
    proposal_log_prob: Tensor | None = None
    """float64 ``[B]``, added to: the log-probability under the altered distribution; known elements add 0."""
    parameters: Tensor | None = None
    """float32 ``[B, n, G * n]``, output: what the head reads at each position, group by group."""
    temperature: float = 1.0
    top_k: int = 0
    """0 is off."""
    top_p: float = 1.0
    threads: int = 1
    ahead: bool = True
    """Whether instructions that may run blocks of cells do. It goes with the state: those cells' sums lie there."""
    step: int = 0
    """All steps before it are done; machines move it on."""
    unfinished: bool = False
    """Whether ``state`` lies between two steps no more: a machine is at work, or was interrupted within a step."""

    def each_step(self, t0: int, t1: int) -> Iterator[int]:
        """Yields the steps ``t0 .. t1 - 1``; raises ValueError unless the run stands before step t0."""
        self.check_between_steps()
        if t0 != self.step:
            raise ValueError(f"steps are {t0} .. {t1}; the run stands before step {self.step}")
        self.unfinished = True
        for t in range(t0, t1):
            yield t
            self.step = t + 1
        self.unfinished = False

    def check_between_steps(self) -> None:
        """Raises RuntimeError where another thread is advancing the run, or did not finish a step."""
        if self.unfinished:
            raise RuntimeError(
                f"this generation cannot go on from step {self.step}: another thread is advancing it, or an exception "
                "left it within the step. Start it again, or go on from a fork or a file that was made before"
            )


def state_stride(numbers: int) -> int:
    """Returns the distance between two samples' states of so many numbers: whole cache lines, one of them between."""
    return -(-numbers // 16) * 16 + 16


def check_batch(batch: int, seed: int) -> tuple[int, int]:
    """Returns both as int; raises ValueError unless ``batch`` is 1 or more and ``seed`` in ``0 .. 2**63 - 1``."""
    batch = check_integer("the number of samples", batch, 1)
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an integer in 0 .. 2**63 - 1, got {seed!r}")
    return batch, int(seed)


def sample_indices(first: int, count: int) -> Tensor:
    """Returns ``first, first + 1, ...``; raises ValueError unless all are sample indices of the noise."""
    first = check_integer("first_sample", first, 0, MOST_SAMPLES - count)
    return torch.arange(first, first + count)
