"""The textbook loop: a whole forward pass for every step, and a draw at that step's position."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastgen.generate.heads import Head
from fastgen.generate.noise import Noise


class ImageLoop:
    """Draws position after position and starts over; every step costs the same.

    Args:
        forward: the network, or what ``torch.compile`` made of it.
        head: draws.
        event_shape: (C, H, W).
        batch: images at once.
        subpixels: whether the channels are drawn one after the other, a forward pass for each.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        head: Head,
        event_shape: tuple,
        batch: int,
        subpixels: bool,
        seed: int,
    ) -> None:
        channels, height, width = event_shape
        self.forward, self.head, self.event_shape, self.seed = forward, head, event_shape, seed
        self.samples, self.step = torch.arange(batch), 0
        self.levels = torch.zeros(batch, channels, height * width)
        self.inputs = head.to_input(self.levels.long()).reshape(batch, channels, height * width)
        self.sites = [
            (p, part)
            for p in range(height * width)
            for part in ([[c] for c in range(channels)] if subpixels else [list(range(channels))])
        ]

    @torch.no_grad()
    def advance(self, steps: int) -> None:
        for _ in range(steps):
            position, channels = self.sites[self.step % len(self.sites)]
            output = self.forward(self.inputs.reshape(-1, *self.event_shape))
            parameters = self.head.arrange(output, self.event_shape)[:, position]
            if len(channels) < self.levels.shape[1]:
                parameters = parameters[:, channels]
            drawn = self.head.draw(parameters, Noise(self.seed, self.samples, position, channels[0]))
            self.levels[:, channels, position] = drawn.levels
            self.inputs[:, channels, position] = drawn.inputs
            self.step += 1

    def drawn(self) -> Tensor:
        """Returns the levels drawn so far at complete positions, int64 [N, C, positions]."""
        complete = self.step * self.levels.shape[1] // (len(self.sites) // self.levels.shape[2]) // self.levels.shape[1]
        return self.levels[:, :, :complete].long()


class WindowLoop:
    """The loop over a sequence of integers: a forward pass over the receptive field for every sample.

    Args:
        history: int64 [N, T], what was generated so far; T at least ``window``.
        window: how many samples before it a sample depends on.
    """

    def __init__(
        self, forward: Callable[[Tensor], Tensor], head: Head, history: Tensor, window: int, seed: int
    ) -> None:
        self.forward, self.head, self.window, self.seed = forward, head, window, seed
        self.samples, self.first = torch.arange(history.shape[0]), history.shape[1]
        self.levels = history[:, -window:]

    @torch.no_grad()
    def advance(self, steps: int) -> None:
        for _ in range(steps):
            position = self.first + self.levels.shape[1] - self.window
            inputs = torch.cat([self.levels[:, -self.window :], torch.zeros_like(self.levels[:, :1])], 1)
            logits = self.forward(inputs)[:, None, :, -1]
            drawn = self.head.draw(logits, Noise(self.seed, self.samples, position))
            self.levels = torch.cat([self.levels, drawn.levels.long()], 1)

    def drawn(self) -> Tensor:
        """Returns the levels drawn so far, int64 [N, steps]."""
        return self.levels[:, self.window :]
