"""Vector quantization with a codebook learned by gradients or by moving averages."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastgen.nn.normalization.channel_moments import has_processes
from fastgen.nn.recomputation import is_recomputation
from fastgen.ops.precision import in_float32
from fastgen.ops.vector_quantize import vector_quantize


class Quantized(NamedTuple):
    """``values`` [N, width, ...] of z's dtype with the straight-through gradient, ``codes`` int64 [N, ...], and two
    scalars, float32 or float64."""

    values: Tensor
    codes: Tensor
    loss: Tensor
    perplexity: Tensor


def _mean_square(difference: Tensor) -> Tensor:
    """0 of nothing."""
    return difference.square().sum() / max(1, difference.numel())


class VectorQuantizer(nn.Module):
    """The nearest code of every position, ``z + (e - z).detach()``: what the codes pass on, z gets the gradient of.

    With ``decay`` the codebook follows the encoder in training by exponential moving averages of how often a code is
    chosen, n, and of the sum of what chose it, m: ``e = m / n'`` with n' Laplace-smoothed by ``epsilon``; the loss is
    ``commitment mean (z - sg e)^2``. With ``decay=None`` the codebook is a parameter, and the loss has also
    ``mean (sg z - e)^2``. The loss of an empty batch is 0. Under ``torch.distributed`` the statistics are those of all
    processes, each of which must make the call. A forward that checkpointing computes again adds nothing to them.

    Input z [N, width, ...], of a grid of any dimensions; half precision is computed in float32. The perplexity of the
    codes' use is ``exp`` of their entropy.

    Raises:
        ValueError: a number out of its range, or z is not [N, width, ...].

    References: van den Oord, Vinyals, Kavukcuoglu, "Neural discrete representation learning", NeurIPS 2017, with its
    appendix on moving averages; Razavi, van den Oord, Vinyals, "Generating diverse high-fidelity images with VQ-VAE-2",
    NeurIPS 2019.

    Example:
        >>> quantizer = VectorQuantizer(codes=512, width=64)
        >>> quantizer(torch.randn(2, 64, 8, 8)).codes.shape
        torch.Size([2, 8, 8])
    """

    def __init__(
        self,
        codes: int,
        width: int,
        *,
        commitment: float = 0.25,
        decay: float | None = 0.99,
        epsilon: float = 1e-5,
    ) -> None:
        if codes < 1 or width < 1:
            raise ValueError(f"codes and width must be at least 1, got {codes} and {width}")
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and less than 1, or None, got {decay}")
        if commitment < 0 or epsilon <= 0:
            raise ValueError(
                f"commitment must be at least 0 and epsilon greater than 0, got {commitment} and {epsilon}"
            )
        super().__init__()
        self.commitment, self.decay, self.epsilon = commitment, decay, epsilon
        codebook = torch.randn(codes, width)
        if decay is None:
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
            self.register_buffer("counts", torch.ones(codes))
            self.register_buffer("sums", codebook.clone())

    def forward(self, z: Tensor) -> Quantized:
        codes, nearest, counts, sums = vector_quantize(self._rows(z), self.codebook)
        if self.decay is None:
            nearest = self.codebook[codes]
        rows, nearest = in_float32(self._rows(z), nearest)
        loss = self.commitment * _mean_square(rows - nearest.detach())
        if self.decay is None:
            loss = loss + _mean_square(rows.detach() - nearest)
        elif self.training and not is_recomputation():
            self._average(counts, sums)
        share = counts / max(1, codes.shape[0])
        perplexity = torch.special.entr(share).sum().exp()
        values = self._grid((rows + (nearest - rows).detach()).to(z.dtype), z)
        return Quantized(values, codes.reshape(z.shape[0], *z.shape[2:]), loss, perplexity)

    def lookup(self, codes: Tensor) -> Tensor:
        """The codes at their positions: int64 [N, ...] to [N, width, ...]."""
        return self.codebook[codes].movedim(-1, 1)

    @torch.no_grad()
    def restart_unused(self, z: Tensor, below: float, seed: int) -> Tensor:
        """Let codes whose average count is less than ``below`` begin again at rows of z [N, width, ...], drawn by seed.

        Average and count both start anew. Returns which codes it were, bool [codes]. Under ``torch.distributed`` every
        process must call it, and the rows are those that the first process draws.

        Raises:
            ValueError: the quantizer keeps no averages, or z is not [N, width, ...] or empty.
        """
        if self.decay is None:
            raise ValueError("decay must be a number for restart_unused, which needs moving averages, got None")
        rows = self._rows(z)
        if not len(rows):
            raise ValueError(f"z must have at least one position, got shape {tuple(z.shape)}")
        unused = self.counts < below
        generator = torch.Generator().manual_seed(seed)
        chosen = rows[torch.randint(len(rows), (len(unused),), generator=generator).to(rows.device)].to(self.codebook)
        if has_processes():
            dist.broadcast(chosen, 0)
        self.codebook.copy_(torch.where(unused[:, None], chosen, self.codebook))
        self.sums.copy_(torch.where(unused[:, None], chosen, self.sums))
        self.counts.copy_(torch.where(unused, 1.0, self.counts))
        return unused

    @torch.no_grad()
    def _average(self, counts: Tensor, sums: Tensor) -> None:
        if has_processes():
            for statistic in (counts, sums):
                dist.all_reduce(statistic)
        self.counts.lerp_(counts.to(self.counts), 1 - self.decay)
        self.sums.lerp_(sums.to(self.sums), 1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + self.epsilon) / (total + len(self.counts) * self.epsilon) * total
        self.codebook.copy_(self.sums / smoothed[:, None])

    def _rows(self, z: Tensor) -> Tensor:
        width = self.codebook.shape[1]
        if z.dim() < 2 or z.shape[1] != width:
            raise ValueError(f"z must have shape [N, {width}, ...], got {tuple(z.shape)}")
        return z.movedim(1, -1).reshape(-1, width)

    def _grid(self, rows: Tensor, z: Tensor) -> Tensor:
        return rows.reshape(z.shape[0], *z.shape[2:], z.shape[1]).movedim(-1, 1)

    def extra_repr(self) -> str:
        codes, width = self.codebook.shape
        return f"{codes}, {width}, commitment={self.commitment}, decay={self.decay}"
