"""The categorical head: a softmax over levels."""

from __future__ import annotations

from numbers import Integral, Real

import torch
from torch import Tensor

from fastgen.generate.heads.base import DrawOptions, Head, check_count, check_distribution, inverse_cdf
from fastgen.generate.noise import Noise


class Categorical(Head):
    """``P(level) = softmax(logits)[level]``, channels drawn independently.

    Output layouts: ``[N, C * L, *positions]`` (channel by channel) or ``[N, C, L, *positions]``. A draw divides the
    logits by the temperature, keeps the ``top_k`` greatest, then the fewest most probable levels whose mass is
    ``top_p`` or more (of equal levels the lower ones stay), and inverts the cdf at the uniform of draw 0.

    Args:
        levels: L, at least 2.
        to_input: how a level becomes the network's input: "index" (integers), "float" (the level as a float), "unit"
            (level / (L - 1)), "symmetric" (2 level / (L - 1) - 1) or a tensor of L values. None: a sampler takes
            "index" for a network that reads integers, as one with an embedding does, and "float" for any other.
    """

    kind = "categorical"

    def __init__(self, levels: int, to_input: str | Tensor | None = None) -> None:
        super().__init__(check_count("levels", levels, 2), to_input)

    @property
    def parameters_per_group(self) -> int:
        return self.levels

    def config(self) -> dict:
        return {"levels": self.levels, "to_input": self._to_input_config()}

    def layouts(self, event_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        layouts = super().layouts(event_shape)
        return [*layouts, (self.groups(event_shape), self.levels, *layouts[0][1:])]

    def group_log_prob(self, parameters: Tensor, levels: Tensor) -> Tensor:
        chosen = parameters.gather(-1, levels.long()).squeeze(-1)
        return chosen - torch.logsumexp(parameters, -1)

    def check_truncation(self, top_k: int, top_p: float) -> None:
        if isinstance(top_k, bool) or not isinstance(top_k, Integral) or not 0 <= top_k <= self.levels:
            raise ValueError(f"top_k must be an integer in 0 (off) .. {self.levels}, got {top_k!r}")
        if isinstance(top_p, bool) or not (isinstance(top_p, Real) and 0 < top_p <= 1):
            raise ValueError(f"top_p must be above 0 and at most 1, got {top_p!r}")

    def draw_groups(
        self, parameters: Tensor, noise: Noise, levels: Tensor, known: Tensor, options: DrawOptions
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        uniform = torch.stack([noise.uniform(group, 0) for group in range(parameters.shape[1])], 1)
        logits = parameters / options.temperature
        top = logits.amax(-1, keepdim=True)
        check_distribution(top, noise.position)
        weights = truncate(torch.exp(logits - top), logits, options.top_k, options.top_p)
        chosen = torch.where(known, levels, inverse_cdf(weights, uniform).double()[..., None])
        proposal = weights.gather(-1, chosen.long()).squeeze(-1).log() - weights.sum(-1).log()
        return chosen, None, proposal.masked_fill(known.squeeze(-1), 0).sum(-1)


def truncate(weights: Tensor, logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Weights with zeros where top-k and top-p leave a level out."""
    if not top_k and top_p == 1:
        return weights
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    ranked = weights.gather(-1, order)
    if top_k:
        ranked[..., top_k:] = 0
    if top_p < 1:
        mass = ranked.cumsum(-1)
        before = torch.cat([torch.zeros_like(mass[..., :1]), mass[..., :-1]], -1)
        ranked = ranked * (before < top_p * mass[..., -1:])
    return torch.zeros_like(weights).scatter(-1, order, ranked)
