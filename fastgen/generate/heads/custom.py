"""A head of the user's own, written in Python."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

import torch
from torch import Tensor

from fastgen.generate.arguments import check_integer
from fastgen.generate.heads.base import DrawOptions, Head, check_count
from fastgen.generate.noise import Noise
from fastgen.generate.orders import event_grid

_MOST_NOISE = 1 << 16
"""Numbers of draws that the noise counts."""


class Custom(Head):
    """A head of your own: two functions in Python, which every machine calls once a step for the whole batch.

    Output layout: ``[N, n, *positions]``, n = ``parameters_per_position``, in whatever arrangement the functions read.
    All channels of a position are drawn at once; so either all of them are known, or none.

    All randomness must come from the noise that ``draw`` is given: then a sample depends on its seed and index only.
    Each row of the results must be computed from the same row of the arguments alone, by the same arithmetic in a batch
    of any size. An exception that they raise (Ctrl-C, too, while they run) reaches the caller as it is, and the
    generation cannot go on.

    Args:
        draw: ``draw(parameters, noise, temperature)`` returns the values ``[B, C]``, finite floats (or whole numbers
            in 0 .. levels - 1), which are rounded to float32; ``parameters`` is float64 ``[B, n]``, ``noise`` float64
            ``[B, k]``, uniform in the open interval (0, 1), ``temperature`` a number above 0.
        log_prob: ``log_prob(parameters, values)`` returns the log-probabilities ``[B]`` of values ``[B, C]`` (int64 for
            a discrete head, else of the dtype of ``parameters``: float64, or float32 in training), by differentiable
            operations if it is to train. With a parameter named ``temperature`` it is told that of the draw
            where ``return_proposal_log_prob`` is wanted, which is refused at other temperatures than 1 without.
        parameters_per_position: n.
        channels: C, the channels of the event.
        levels: 0 for continuous values, else L, at least 2.
        noise_per_position: k; by default C. Column i is the uniform number of draw i of the first channel.
        to_input: how a level becomes the network's input, as in ``Categorical``; for a discrete head only.

    Raises:
        ValueError: an argument is out of range, or a function cannot be called.

    Example:
        >>> def draw(parameters, noise, temperature):
        ...     return -torch.log(noise) * temperature * torch.exp(parameters)
        >>> def log_prob(parameters, values):
        ...     return (-parameters - values * torch.exp(-parameters)).sum(-1)
        >>> head = fastgen.heads.Custom(draw, log_prob, parameters_per_position=1, channels=1)  # exponential
        >>> head.log_prob(torch.zeros(1, 1, 3), torch.ones(1, 3))
        tensor([-3.])
    """

    kind = "custom"
    draws_at_once = True

    def __init__(
        self,
        draw: Callable[[Tensor, Tensor, float], Tensor],
        log_prob: Callable[..., Tensor],
        *,
        parameters_per_position: int,
        channels: int,
        levels: int = 0,
        noise_per_position: int | None = None,
        to_input: str | Tensor | None = None,
    ) -> None:
        for name, function in (("draw", draw), ("log_prob", log_prob)):
            if not callable(function):
                raise ValueError(f"{name} must be a function, got {function!r:.100}")
        self.channels = check_count("channels", channels, 1)
        self.coupled = self.channels
        if levels != 0:
            check_count("levels", levels, 2)
        if levels == 0 and to_input is not None:
            raise ValueError(f"to_input must be None for a continuous head, got {to_input!r:.100}")
        super().__init__(int(levels), to_input if levels else "index")
        self.parameters_per_position = check_count("parameters_per_position", parameters_per_position, 1)
        noise = self.channels if noise_per_position is None else noise_per_position
        self.noise_per_position = check_integer("noise_per_position", noise, 1, _MOST_NOISE)
        self.draw_function, self.log_prob_function = draw, log_prob
        self.scores_proposals = _takes_temperature(log_prob)

    @property
    def parameters_per_group(self) -> int:
        return self.parameters_per_position

    def config(self) -> dict:
        """Returns the arguments but the functions, which no file holds."""
        return {
            "parameters_per_position": self.parameters_per_position,
            "channels": self.channels,
            "levels": self.levels,
            "noise_per_position": self.noise_per_position,
            "to_input": self._to_input_config() if self.levels else None,
        }

    def spec(self) -> dict:
        return super().spec() | {"parameters": self.parameters_per_position}

    def groups(self, event_shape: tuple[int, ...]) -> int:
        channels, _ = event_grid(event_shape)
        if channels != self.channels:
            raise ValueError(f"event_shape must have {self.channels} channels for {self}, got {tuple(event_shape)}")
        return 1

    def check_sampling(
        self, temperature: float, top_k: int = 0, top_p: float = 1.0, scored: bool = False, proposal: bool = False
    ) -> DrawOptions:
        options = super().check_sampling(temperature, top_k, top_p, scored, proposal)
        if proposal and not self.scores_proposals and options.temperature != 1:
            raise ValueError(
                "temperature must be 1 for log-probabilities of the altered distribution, unless the log_prob of a "
                f"Custom head takes temperature, got {temperature!r}"
            )
        return options

    def group_log_prob(self, parameters: Tensor, levels: Tensor) -> Tensor:
        return self._scores(parameters, levels)

    def draw_groups(
        self, parameters: Tensor, noise: Noise, levels: Tensor, known: Tensor, options: DrawOptions
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        self.check_known_mask(known.transpose(1, 2))
        if bool(known.all()):
            return levels, None, None
        uniform = torch.stack([noise.uniform(0, draw) for draw in range(self.noise_per_position)], 1)
        drawn = self.draw_function(parameters[:, 0], uniform, options.temperature)
        drawn = self._checked(drawn, len(parameters), noise.position)
        chosen = torch.where(known, levels, drawn[:, None])
        if options.temperature == 1:
            return chosen, None, None
        if not (options.scored and self.scores_proposals):
            return chosen, None, torch.full_like(parameters[:, 0, 0], torch.nan)
        proposal = self._scores(parameters, chosen, temperature=options.temperature)
        return chosen, None, proposal.masked_fill(known.any(-1), 0).sum(-1)

    def _checked(self, drawn: Tensor, batch: int, position: int) -> Tensor:
        """Returns what ``draw`` returned as the float32 numbers that it stands for, in float64."""
        shape = [batch, self.channels]
        if not isinstance(drawn, Tensor) or list(drawn.shape) != shape:
            raise ValueError(f"draw must return values {shape}, got {_shape(drawn)}")
        drawn = drawn.detach().to("cpu", torch.float32).double()
        if not bool(self.holds(drawn).all()):
            wrong = float(drawn[~self.holds(drawn)][0])
            raise ValueError(f"draw must return values that are {self.allowed()}, got {wrong} at position {position}")
        return drawn

    def _scores(self, parameters: Tensor, levels: Tensor, **options: float) -> Tensor:
        """Calls ``log_prob`` with ``[..., 1, n]`` and ``[..., 1, C]``; returns ``[..., 1]``."""
        values = (levels.long() if self.levels else levels.to(parameters.dtype)).flatten(0, -2)
        scores = self.log_prob_function(parameters.flatten(0, -2), values, **options)
        if not isinstance(scores, Tensor) or list(scores.shape) != [len(values)]:
            raise ValueError(f"log_prob must return log-probabilities [{len(values)}], got {_shape(scores)}")
        return scores.to(parameters.dtype).reshape(parameters.shape[:-1])


def _takes_temperature(function: Callable) -> bool:
    try:
        return "temperature" in signature(function).parameters
    except ValueError:  # a function without a signature that Python knows
        return False


def _shape(value: object) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
