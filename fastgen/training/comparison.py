"""Comparison of two ways of sampling, up to the float32 error of re-association."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgen.generate.noise import Noise


@dataclass(frozen=True)
class Comparison:
    """Numbers of samples that are ``equal`` in every element, that part at an ``edge``, and that are ``unexplained``.

    A sample parts at an edge if its first different element does so because of rounding: both levels are drawn, with
    the same uniforms, from parameters within the float32 error of the exact ones. What follows it differs rightly.
    """

    equal: int
    edge: int
    unexplained: int

    @property
    def samples(self) -> int:
        return self.equal + self.edge + self.unexplained

    def __str__(self) -> str:
        if self.equal == self.samples:
            return f"all {self.samples} samples are the same, element by element"
        text = f"{self.equal} of {self.samples} samples are the same, {self.edge} part where a draw lies at a cdf edge"
        return text + (f", {self.unexplained} DIFFER" if self.unexplained else "")


def compare(
    model: nn.Module,
    one: Tensor,
    other: Tensor,
    seed: int,
    context: Tensor | None = None,
    **altered: float,
) -> Comparison:
    """Compares levels ``[N, *event_shape]`` that were drawn with one seed in raster order, by two ways.

    ``context`` has one row a sample; ``altered`` are temperature, top_k and top_p. The float32 error of a sample's
    parameters is measured: the largest difference between the model's float32 and float64 forward, eight-fold, since
    the two ways re-associate otherwise than these.
    """
    channels = 1 if one.dim() == 2 else one.shape[1]
    ways = torch.stack([one, other], 1).reshape(len(one), 2, channels, -1)
    parted = torch.nonzero((ways[:, 0] != ways[:, 1]).flatten(1).any(1)).flatten().tolist()
    exact = copy.deepcopy(model).double()
    edges = 0
    for i in parted:
        position, channel = torch.nonzero((ways[i, 0] != ways[i, 1]).T)[0].tolist()
        row = None if context is None else context[i : i + 1]
        noise = Noise(seed, torch.tensor([i]), position)
        levels = set(ways[i, :, channel, position].tolist())
        edges += levels <= _within_error(model, exact, one[i : i + 1], row, noise, channel, altered)
    return Comparison(len(one) - len(parted), edges, len(parted) - edges)


@torch.no_grad()
def _within_error(
    model: nn.Module,
    exact: nn.Module,
    levels: Tensor,
    context: Tensor | None,
    noise: Noise,
    channel: int,
    altered: dict,
) -> set[int]:
    """The levels that parameters within the error draw: each parameter in turn moved by it, both ways."""
    head, event_shape = model.head, tuple(levels.shape[1:])
    inputs = head.to_input(levels)
    single = head.arrange(model(inputs, context), event_shape).double()
    wide = inputs.double() if inputs.is_floating_point() else inputs
    double = head.arrange(exact(wide, context), event_shape)
    error = 8 * (single - double).abs().max()
    parameters = double[:, noise.position]
    moves = error * torch.eye(parameters.numel(), dtype=torch.float64).reshape(-1, *parameters.shape[1:])
    moved = torch.cat([parameters, parameters + moves, parameters - moves])
    many = Noise(noise.seed, noise.samples.expand(len(moved)), noise.position, noise.channel0)
    drawn = head.draw(moved, many, **altered).levels
    before = levels.reshape(1, drawn.shape[1], -1)[..., :channel, noise.position]
    return set(drawn[(drawn[:, :channel] == before).all(1), channel].long().tolist())
