"""The Bernoulli head: two levels, one logit each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.generate.heads.base import DrawOptions, Head
from fastgen.generate.noise import Noise


class Bernoulli(Head):
    """``P(level 1) = sigmoid(logit)``, channels drawn independently.

    Output layouts: ``[N, C, *positions]``, and ``[N, *positions]`` for an event without a channel dimension. A draw is
    level 1 where the uniform of draw 0 is below ``sigmoid(logit / temperature)``.

    Args:
        to_input: how a level becomes the network's input: "index" (integers), "float" (the level as a float), "unit"
            (level / (L - 1)), "symmetric" (2 level / (L - 1) - 1) or a tensor of 2 values. None: a sampler takes
            "index" for a network that reads integers, as one with an embedding does, and "float" for any other.
    """

    kind = "bernoulli"

    def __init__(self, to_input: str | Tensor | None = None) -> None:
        super().__init__(2, to_input)

    @property
    def parameters_per_group(self) -> int:
        return 1

    def config(self) -> dict:
        return {"to_input": self._to_input_config()}

    def layouts(self, event_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        layouts = super().layouts(event_shape)
        return [tuple(event_shape), *layouts] if len(event_shape) == 1 else layouts

    def group_log_prob(self, parameters: Tensor, levels: Tensor) -> Tensor:
        return F.logsigmoid(torch.where(levels == 1, parameters, -parameters)).squeeze(-1)

    def draw_groups(
        self, parameters: Tensor, noise: Noise, levels: Tensor, known: Tensor, options: DrawOptions
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        uniform = torch.stack([noise.uniform(group, 0) for group in range(parameters.shape[1])], 1)[..., None]
        logits = parameters / options.temperature
        chosen = torch.where(known, levels, (uniform < torch.sigmoid(logits)).double())
        proposal = self.group_log_prob(logits, chosen).masked_fill(known.squeeze(-1), 0)
        return chosen, None, proposal.sum(-1)
