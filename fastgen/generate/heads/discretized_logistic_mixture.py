"""The head of PixelCNN++: a mixture of discretized logistics, shared by one or three channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgen.distributions.discretized_logistic import (
    discretized_logistic_log_prob,
    discretized_logistic_mixture_log_prob,
    shifted_mean,
    to_level,
    to_symmetric,
)
from fastgen.generate.heads.base import DrawOptions, Head, check_count, check_distribution, inverse_cdf
from fastgen.generate.noise import Noise
from fastgen.generate.orders import event_grid

_MARGIN = 1e-5


class DiscretizedLogisticMixture(Head):
    """A mixture of discretized logistics, channels autoregressive; Salimans et al., "PixelCNN++" (2017).

    Output layouts, ``[N, n, *positions]``, in blocks of M = ``mixtures`` values: for one channel (n = 3M) logits, means
    and log-scales; for three coupled channels (n = 10M) logits, then for each channel means, log-scales and
    coefficients, as in the public PixelCNN++ code. The probability is
    ``fastgen.distributions.discretized_logistic_mixture_log_prob``.

    A draw picks one component by the uniform of draw 0. Then, channel by channel, with u the uniform of draw 1 and
    ``u' = 1e-5 + u (1 - 2e-5)``, it takes ``mean + scale * temperature * logit(u')``, the mean shifted by the earlier
    channels; clamps it to [-1, 1]; and rounds it to the nearest level. A channel after a known one draws its component
    afresh, by its own uniform of draw 0, given all earlier channels: the exact conditional.

    Args:
        mixtures: M.
        levels: L, at least 2.
        channels: how many channels share a mixture, 1 or 3; None: those of the event. 1 draws channels independently.
        to_input: how a level becomes the network's input: "index", "float", "unit", "symmetric" or a tensor of L
            values, as in ``Categorical``; None: what the network takes.
        feed_raw: feed the clamped draw before rounding to the network and to later channels, as public code does. Such
            draws have no log-probability. Needs ``to_input="symmetric"``.
    """

    kind = "discretized_logistic_mixture"

    def __init__(
        self,
        mixtures: int,
        levels: int = 256,
        channels: int | None = None,
        to_input: str | Tensor | None = "symmetric",
        feed_raw: bool = False,
    ) -> None:
        super().__init__(check_count("levels", levels, 2), to_input)
        if isinstance(channels, bool) or channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1, 3 or None, got {channels!r}")
        if not isinstance(feed_raw, bool):
            raise ValueError(f"feed_raw must be True or False, got {feed_raw!r:.100}")
        if feed_raw and self.to_input_name != "symmetric":
            raise ValueError(f"feed_raw=True needs to_input='symmetric'; it is {self.to_input_name!r}")
        self.mixtures = check_count("mixtures", mixtures, 1)
        self.coupled = channels and int(channels)
        self.feed_raw = feed_raw

    @property
    def parameters_per_group(self) -> int:
        if self.coupled is None:
            raise ValueError("parameters_per_group depends on the event's channels; call resolve(event_shape) first")
        return self.mixtures * (3 if self.coupled == 1 else 10)

    def config(self) -> dict:
        return {
            "mixtures": self.mixtures,
            "levels": self.levels,
            "channels": self.coupled,
            "to_input": self._to_input_config(),
            "feed_raw": self.feed_raw,
        }

    def groups(self, event_shape: tuple[int, ...]) -> int:
        channels, _ = event_grid(event_shape)
        if self.coupled is None and channels not in (1, 3):
            raise ValueError(f"event_shape {tuple(event_shape)} has {channels} channels; {self} couples 1 or 3")
        return super().groups(event_shape)

    def resolve(self, event_shape: tuple[int, ...]) -> DiscretizedLogisticMixture:
        channels, _ = event_grid(event_shape)
        self.groups(event_shape)
        if self.coupled is not None:
            return self
        to_input = self.inputs if self.to_input_name == "table" else self.to_input_name
        return DiscretizedLogisticMixture(self.mixtures, self.levels, channels, to_input, self.feed_raw)

    def channels_of(self, count: int) -> int:
        return 1 if count == 3 * self.mixtures else 3

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Logits ``[..., M]``, then means, clamped log-scales and coefficients ``[..., C, M]``."""
        logits, rest = parameters[..., : self.mixtures], parameters[..., self.mixtures :]
        channels = self.channels_of(parameters.shape[-1])
        blocks = rest.unflatten(-1, (channels, -1, self.mixtures))
        log_scales = blocks[..., 1, :].clamp(min=self.min_log_scale)
        return logits, blocks[..., 0, :], log_scales, blocks[..., 2, :] if channels > 1 else None

    def group_log_prob(self, parameters: Tensor, levels: Tensor) -> Tensor:
        return discretized_logistic_mixture_log_prob(*self._split(parameters), levels, self.levels)

    def draw_groups(
        self, parameters: Tensor, noise: Noise, levels: Tensor, known: Tensor, options: DrawOptions
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        logits, means, log_scales, coefficients = self._split(parameters)
        log_scales = log_scales + math.log(options.temperature)
        check_distribution(logits.amax(-1), noise.position)
        groups, channels = known.shape[1:]
        weights = logits / options.temperature
        component = torch.zeros_like(weights[..., 0], dtype=torch.int64)
        chosen, seen = torch.empty_like(levels), torch.empty_like(levels)
        proposal = torch.zeros_like(weights[..., 0])
        for channel in range(channels):
            uniforms = [[noise.uniform(g * channels + channel, draw) for g in range(groups)] for draw in (0, 1)]
            pick, place = (torch.stack(u, 1) for u in uniforms)
            afresh = known[..., channel - 1] if channel else torch.ones_like(known[..., 0])
            drawn = inverse_cdf(torch.exp(weights - weights.amax(-1, keepdim=True)), pick)
            component = torch.where(afresh, drawn, component)
            mean, log_scale = means[..., channel, :], log_scales[..., channel, :]
            if coefficients is not None:
                mean = shifted_mean(mean, coefficients, seen, channel)
            place = _MARGIN + place * (1 - 2 * _MARGIN)
            logistic = torch.log(place) - torch.log1p(-place)
            at = component[..., None]
            raw = mean.gather(-1, at)[..., 0] + log_scale.gather(-1, at)[..., 0].exp() * logistic
            raw = raw.clamp(-1, 1).float().double()
            if raw.isnan().any():
                raise ValueError(f"the network's output at position {noise.position} makes no distribution")
            kept = known[..., channel]
            level = torch.where(kept, levels[..., channel], to_level(raw, self.levels))
            chosen[..., channel] = level
            seen[..., channel] = to_symmetric(level, self.levels)
            if self.feed_raw:
                seen[..., channel] = torch.where(kept, seen[..., channel], raw)
            after = weights + discretized_logistic_log_prob(level[..., None], mean, log_scale, self.levels)
            proposal += (torch.logsumexp(after, -1) - torch.logsumexp(weights, -1)).masked_fill(kept, 0)
            weights = after
        return chosen, seen if self.feed_raw else None, proposal.sum(-1)
