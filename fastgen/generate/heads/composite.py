"""A head of several: the channels of a position are drawn by one head after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fastgen.generate.heads.base import DrawOptions, Head
from fastgen.generate.heads.categorical import Categorical
from fastgen.generate.noise import Noise
from fastgen.generate.orders import event_grid


class Composite(Head):
    """Draws the channels of a position by several heads, which are independent given the network's output.

    The log-probability is the sum of those of the parts. A part draws as many channels as it couples, one after the
    other in the order of the arguments: ``BivariateGaussianMixture`` two, ``DiscretizedLogisticMixture`` with
    ``channels=3`` three, any other head one. A head of several independent channels stands once for each.

    A sample is float32 in all channels, the levels of a discrete part as floats. So is what the network reads: a value
    as it is, a level as the part's ``to_input`` says (``None`` and "index": as a float, which the network may cast for
    an embedding).

    Output layout: ``[N, n, *positions]``, for each part in turn the parameters of its channels in its own layout; n is
    their sum. A channel draws with the noise of its number in the event, so it draws what its part alone would. The
    temperature alters all parts; ``top_k`` and ``top_p`` the ``Categorical`` ones, of which there must be one.

    Args:
        parts: two heads or more.

    Raises:
        ValueError: fewer than two parts, or a part is none of ``fastgen.heads``, or one that does not say how many
            channels it draws (``DiscretizedLogisticMixture`` without ``channels``), or feeds raw values
            (``feed_raw=True``), or is ``Composite`` or ``Custom`` itself.

    Example:
        >>> pen = fastgen.heads.Composite(fastgen.heads.BivariateGaussianMixture(20), fastgen.heads.Bernoulli())
        >>> pen.channels, pen.parameters_per_group
        (3, 121)
        >>> strokes = torch.cat([torch.randn(4, 2, 100), torch.randint(0, 2, (4, 1, 100)).float()], 1)
        >>> pen.log_prob(torch.randn(4, 121, 100), strokes).shape
        torch.Size([4])
    """

    kind = "composite"

    def __init__(self, *parts: Head) -> None:
        super().__init__(0, "index")
        if len(parts) < 2:
            raise ValueError(f"parts must be two heads or more, got {len(parts)}")
        for part in parts:
            _check_part(part)
        self.parts = parts
        self.channels = sum(part.coupled or 0 for part in parts)
        """How many channels an event must have."""
        self.coupled = self.channels

    @property
    def parameters_per_group(self) -> int:
        return sum(part.parameters_per_group for part in self.parts)

    def config(self) -> dict:
        return {"parts": [{"kind": part.kind} | part.config() for part in self.parts]}

    def spec(self) -> dict:
        return super().spec() | {"parts": [part.spec() for part in self.parts]}

    def groups(self, event_shape: tuple[int, ...]) -> int:
        channels, _ = event_grid(event_shape)
        if channels != self.channels:
            raise ValueError(f"event_shape must have {self.channels} channels for {self}, got {tuple(event_shape)}")
        return 1

    def runs(self) -> Iterator[tuple[Head, slice, slice]]:
        """Yields each part with its channels and its parameters."""
        channel = parameter = 0
        for part in self.parts:
            channels, parameters = part.coupled or 0, part.parameters_per_group
            yield part, slice(channel, channel + channels), slice(parameter, parameter + parameters)
            channel, parameter = channel + channels, parameter + parameters

    def group_log_prob(self, parameters: Tensor, levels: Tensor) -> Tensor:
        total = torch.zeros_like(parameters[..., 0])
        for part, channels, run in self.runs():
            own = levels[..., channels]
            total = total + part.group_log_prob(parameters[..., run], own.long() if part.levels else own)
        return total

    def draw_groups(
        self, parameters: Tensor, noise: Noise, levels: Tensor, known: Tensor, options: DrawOptions
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        chosen: list[Tensor] = []
        total: Tensor | None = torch.zeros_like(parameters[:, 0, 0])
        for part, channels, run in self.runs():
            own = replace(noise, channel0=noise.channel0 + channels.start)
            drawn, _, proposal = part.draw_groups(
                parameters[..., run], own, levels[..., channels], known[..., channels], options
            )
            chosen.append(drawn)
            total = None if total is None or proposal is None else total + proposal
        return torch.cat(chosen, -1), None, total

    def check_levels(self, levels: Tensor, name: str = "levels") -> None:
        """Raises ValueError unless these are floats ``[N, C, *positions]``, and levels where a part is discrete."""
        super().check_levels(levels, name)
        if levels.dim() < 2 or levels.shape[1] != self.channels:
            raise ValueError(f"{name} must have shape [N, {self.channels}, *positions], got {list(levels.shape)}")
        if torch.compiler.is_compiling():
            return
        for part, channels, _ in self.runs():
            own = levels[:, channels]
            if part.levels and not bool(part.holds(own).all()):
                wrong = float(own[~part.holds(own)][0])
                raise ValueError(f"{name} must be {part.allowed()} in {among(channels)} ({part}), got {wrong}")

    def fed(self, levels: Tensor) -> Tensor:
        return torch.cat([part.fed(levels[:, channels]) for part, channels, _ in self.runs()], 1)

    def holds(self, levels: Tensor) -> Tensor:
        return torch.cat([part.holds(levels[:, channels]) for part, channels, _ in self.runs()], 1)

    def allowed(self) -> str:
        return ", ".join(f"{part.allowed()} in {among(channels)}" for part, channels, _ in self.runs())

    def random_levels(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        drawn = []
        for part, channels, _ in self.runs():
            own = shape[0], channels.stop - channels.start, *shape[2:]
            drawn.append(part.random_levels(own, generator).float())
        return torch.cat(drawn, 1)

    def check_known(self, levels: Tensor, known: Tensor, position: int) -> None:
        for part, channels, _ in self.runs():
            part.check_known(levels[:, channels], known[:, channels], position)

    def check_truncation(self, top_k: int, top_p: float) -> None:
        chosen = [part for part in self.parts if isinstance(part, Categorical)]
        if not chosen:
            super().check_truncation(top_k, top_p)
        for part in chosen:
            part.check_truncation(top_k, top_p)

    def __repr__(self) -> str:
        return f"Composite({', '.join(map(repr, self.parts))})"


def among(channels: slice) -> str:
    """Returns the channels as a message names them."""
    last = channels.stop - 1
    return f"channel {last}" if channels.start == last else f"channels {channels.start} .. {last}"


def _check_part(part: Head) -> None:
    """Raises ValueError unless a head can be a part."""
    if not isinstance(part, Head) or part.kind in ("composite", "custom"):
        raise ValueError(f"parts must be heads other than Composite and Custom, got {part!r:.100}")
    if part.coupled is None:
        raise ValueError(f"parts must say how many channels they draw, got {part!r}: pass channels=1 or channels=3")
    if part.feed_raw:
        raise ValueError(f"parts must have feed_raw=False, got {part!r}")
