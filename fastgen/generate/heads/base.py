"""The base class of heads: the arrangement of parameters, levels as inputs, scoring and drawing."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastgen.generate.arguments import finite_number
from fastgen.generate.noise import Noise
from fastgen.generate.orders import event_grid


class Drawn(NamedTuple):
    """One draw: C elements each of B samples. The log-probabilities are NaN for a head with ``feed_raw=True``."""

    levels: Tensor
    """float32 ``[B, C]``: levels, or values of a continuous head."""
    inputs: Tensor
    """float32 ``[B, C]``: what the network reads."""
    log_prob: Tensor
    """float64 ``[B]``: the model's log-probability, at temperature 1, of all C elements."""
    proposal_log_prob: Tensor
    """float64 ``[B]``: log-probability of the elements not known, under the altered distribution."""


class DrawOptions(NamedTuple):
    """Changes to the distribution that is drawn from."""

    temperature: float = 1.0
    """Divides logits and multiplies scales."""
    top_k: int = 0
    """The k most probable levels are drawn; 0: all."""
    top_p: float = 1.0
    """Of them, the fewest that have this share of their probability."""
    scored: bool = True
    """Whether log-probabilities are wanted; those that are not may be NaN."""


class Head(ABC):
    """The distribution that a network's output stands for.

    A head reads the output as *groups of parameters*: ``[N, P, G, n]`` for P positions in natural order, G groups a
    position and n parameters a group. Each group describes ``coupled`` channels of the event (1, unless channels are
    coupled).
    """

    kind: str
    levels: int
    """Number of levels; 0 for a continuous head."""
    mixtures: int = 1
    coupled: int | None = 1
    """Channels that share a group of parameters; None: all channels of the event."""
    draws_at_once: bool = False
    """Whether the channels that are coupled are known all or none."""
    feed_raw: bool = False
    min_log_scale: float = -7.0

    def __init__(self, levels: int, to_input: str | Tensor | None) -> None:
        self.levels = levels
        self.to_input_name = "table" if isinstance(to_input, Tensor) else to_input
        self.inputs = _input_table(levels, to_input)

    @property
    @abstractmethod
    def parameters_per_group(self) -> int:
        """n. Raises ValueError where that depends on the event's channels: ask the head that ``resolve`` returns."""

    @abstractmethod
    def group_log_prob(self, parameters: Tensor, levels: Tensor) -> Tensor:
        """``[..., G, n]`` and ``[..., G, C / G]`` to the log-probability ``[..., G]``, of the parameters' dtype."""

    @abstractmethod
    def draw_groups(
        self, parameters: Tensor, noise: Noise, levels: Tensor, known: Tensor, options: DrawOptions
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Draws from float64 ``[B, G, n]``; ``levels`` and ``known`` are ``[B, G, C / G]``.

        Returns levels, the raw values to feed instead (None: feed the levels' inputs), and the proposal's
        log-probability ``[B]`` (None: the model's, of the groups of which nothing is known).
        """

    @abstractmethod
    def config(self) -> dict:
        """Returns the arguments of the constructor, as JSON takes them."""

    def resolve(self, event_shape: tuple[int, ...]) -> Head:
        """This head, with everything settled that depends on the event."""
        self.groups(event_shape)
        return self

    def reading(self, to_input: str) -> Head:
        """This head, whose levels become the network's input as ``to_input`` ("index" or "float") says."""
        head = copy.copy(self)
        head.to_input_name = to_input
        return head

    def groups(self, event_shape: tuple[int, ...]) -> int:
        """Returns G, the number of groups of parameters of a position."""
        channels, _ = event_grid(event_shape)
        coupled = channels if self.coupled is None else self.coupled
        if channels % coupled:
            raise ValueError(f"event_shape {tuple(event_shape)} has {channels} channels; {self} couples {coupled}")
        return channels // coupled

    def layouts(self, event_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Returns the accepted shapes of the network's output, without the batch dimension."""
        _, positions = event_grid(event_shape)
        return [(self.groups(event_shape) * self.resolve(event_shape).parameters_per_group, *positions)]

    def arrange(self, output: Tensor, event_shape: tuple[int, ...]) -> Tensor:
        """Returns the network's output as parameters ``[N, P, G, n]``: data movement only, of any dtype.

        Raises:
            ValueError: the output has none of the layouts that the head accepts.
        """
        layouts = self.layouts(event_shape)
        if tuple(output.shape[1:]) not in layouts:
            accepted = " or ".join("[" + ", ".join(map(str, ("N", *layout))) + "]" for layout in layouts)
            given = list(output.shape)
            raise ValueError(
                f"output must have shape {accepted} ({self} with event_shape {tuple(event_shape)}), got {given}"
                + _turned(output, layouts)
            )
        groups, (_, positions) = self.groups(event_shape), event_grid(event_shape)
        count = self.resolve(event_shape).parameters_per_group
        return output.reshape(-1, groups, count, math.prod(positions)).permute(0, 3, 1, 2)

    def log_prob(self, output: Tensor, levels: Tensor) -> Tensor:
        """Returns the log-probability of levels given the network's output, summed over dimensions; differentiable.

        Args:
            output: the network's output, in a layout that ``arrange`` accepts.
            levels: integers (values, for a continuous head) ``[N, *event_shape]``.

        Returns:
            ``[N]``, in nats: float64 for a float64 output, otherwise float32. The sum is in float64, where the device
            has it.

        Raises:
            ValueError: the layout, the dtype or the range of an argument is wrong.
        """
        self.check_levels(levels)
        event_shape = tuple(levels.shape[1:])
        parameters = self.arrange(output, event_shape)
        if parameters.shape[0] != levels.shape[0]:
            raise ValueError(f"levels has {levels.shape[0]} samples; output has {parameters.shape[0]}")
        if parameters.dtype != torch.float64:
            parameters = parameters.float()
        groups, (channels, positions) = parameters.shape[2], event_grid(event_shape)
        levels = levels.reshape(-1, groups, channels // groups, math.prod(positions)).permute(0, 3, 1, 2)
        terms = self.group_log_prob(parameters, levels)
        wide = terms.dtype if terms.device.type == "mps" else torch.float64
        return terms.sum((1, 2), dtype=wide).to(terms.dtype)

    def check_levels(self, levels: Tensor, name: str = "levels") -> None:
        """Raises ValueError unless these are integers in ``0 .. L-1`` (for a continuous head: floating point)."""
        if not self.levels:
            if not levels.is_floating_point():
                raise ValueError(f"{name} has dtype {levels.dtype}; {self} takes floating-point values")
            return
        if levels.is_floating_point() or levels.is_complex() or levels.dtype == torch.bool:
            raise ValueError(f"{name} has dtype {levels.dtype}; {self} takes integers")
        if levels.numel() and not torch.compiler.is_compiling():
            whole = levels.long()  # PyTorch has no minimum of some unsigned integers
            low, high = int(whole.min()), int(whole.max())
            if low < 0 or high >= self.levels:
                raise ValueError(f"{name} has values in {low} .. {high}; {self} takes 0 .. {self.levels - 1}")

    def to_input(self, levels: Tensor) -> Tensor:
        """Returns the module's input: int64 for "index" or None, else float32 (a continuous head passes values on)."""
        self.check_levels(levels)
        indices = self.levels and self.to_input_name in ("index", None)
        return levels.long() if indices else self.fed(levels)

    def fed(self, levels: Tensor) -> Tensor:
        """Returns the network's input float32 ``[B, C, ...]`` for levels or values of the same shape."""
        return levels.float() if self.inputs is None else self.inputs.to(levels.device)[levels.long()]

    def holds(self, levels: Tensor) -> Tensor:
        """Returns booleans ``[B, C, ...]``: whether floating-point numbers of this shape are levels of the head."""
        if not self.levels:
            return levels.isfinite()
        return (levels == levels.floor()) & (levels >= 0) & (levels < self.levels)

    def allowed(self) -> str:
        """Returns what ``holds`` asks for, as errors say it."""
        return f"whole numbers in 0 .. {self.levels - 1}" if self.levels else "finite"

    def random_levels(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Returns levels ``[N, *event_shape]``, each as often as any other; of a continuous head, normal values."""
        if not self.levels:
            return torch.randn(shape, generator=generator)
        count = math.prod(shape)
        rounds = [torch.randperm(self.levels, generator=generator) for _ in range(-(-count // self.levels))]
        return torch.cat(rounds)[:count].reshape(shape)

    def check_known_mask(self, known: Tensor) -> None:
        """Raises ValueError unless it can draw the rest given the known ones of booleans ``[B, C, positions]``."""
        if self.draws_at_once and bool((known != known[:, :1]).any()):
            raise ValueError(f"known_mask must be the same for all channels of a position, which {self} draws at once")

    def check_sampling(
        self, temperature: float, top_k: int = 0, top_p: float = 1.0, scored: bool = False, proposal: bool = False
    ) -> DrawOptions:
        """Returns the options.

        ``scored`` says whether log-probabilities are wanted, ``proposal`` whether those of the altered distribution.

        Raises:
            ValueError: the head cannot draw so.
        """
        if not finite_number("temperature", temperature) > 0:
            raise ValueError(f"temperature must be a finite number above 0, got {temperature!r:.100}")
        if temperature < LEAST_TEMPERATURE:
            raise ValueError(f"temperature must be {LEAST_TEMPERATURE:.2g} or more, got {temperature!r}")
        self.check_truncation(top_k, top_p)
        if (scored or proposal) and self.feed_raw:
            raise ValueError("feed_raw=True draws have no log-probability: levels do not tell what the network was fed")
        return DrawOptions(float(temperature), int(top_k), float(top_p), scored or proposal)

    def check_truncation(self, top_k: int, top_p: float) -> None:
        """Raises ValueError unless the head can draw from the ``top_k`` levels, or those with the mass ``top_p``."""
        if top_k != 0 or top_p != 1:
            raise ValueError(
                f"top_k is {top_k} and top_p is {top_p}; only a Categorical head takes others than 0 and 1"
            )

    def draw(
        self,
        parameters: Tensor,
        noise: Noise,
        levels: Tensor | None = None,
        known: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        scored: bool = True,
    ) -> Drawn:
        """Draws the C elements of one position, all but the known ones.

        Args:
            parameters: ``[B, G, n]``, one position of ``arrange``; computed with in float64.
            noise: where the uniform numbers come from.
            levels, known: float ``[B, C]`` and bool ``[B, C]``: where known, the level is kept, and coupled channels
                after it are drawn given it.
            temperature: divides logits and multiplies scales.
            top_k, top_p: Categorical only; the k most probable levels (0: all), then the fewest with mass top_p.
            scored: whether log-probabilities are wanted.

        Raises:
            ValueError: a sampling argument is out of range, a known level is none, or the parameters are NaN or make no
                distribution.
        """
        options = self.check_sampling(temperature, top_k, top_p)._replace(scored=scored)
        batch, groups, count = parameters.shape
        coupled = self.coupled or self.channels_of(count)
        if levels is None or known is None:
            levels = parameters.new_zeros(batch, groups * coupled, dtype=torch.float32)
            known = torch.zeros_like(levels, dtype=torch.bool)
        levels, known = levels.double().reshape(batch, groups, coupled), known.reshape(batch, groups, coupled)
        self.check_known(levels.flatten(1), known.flatten(1), noise.position)
        parameters = parameters.double()
        if parameters.isnan().any():
            raise ValueError(f"the network's output at position {noise.position} is NaN")
        chosen, raw, proposal = self.draw_groups(parameters, noise, levels, known, options)
        log_prob = parameters.new_full((batch, groups), torch.nan)
        if options.scored and raw is None:
            log_prob = self.group_log_prob(parameters, chosen.long() if self.levels else chosen)
        if proposal is None:
            proposal = log_prob.masked_fill(known.any(-1), 0).sum(-1)
        inputs = self.fed(chosen.flatten(1)) if raw is None else raw.float().flatten(1)
        proposal = proposal if raw is None else torch.full_like(proposal, torch.nan)
        return Drawn(chosen.float().flatten(1), inputs, log_prob.sum(-1), proposal)

    def check_known(self, levels: Tensor, known: Tensor, position: int) -> None:
        """Raises ValueError unless the known ones of ``[B, C]`` numbers are levels of the head."""
        if bool((self.holds(levels) | ~known).all()):
            return
        if not self.levels:
            raise ValueError(f"a known value at position {position} is not finite")
        raise ValueError(f"a known level at position {position} is no whole number in 0 .. {self.levels - 1}")

    def channels_of(self, count: int) -> int:
        """Returns the number of channels that a group of ``count`` parameters describes."""
        return 1

    def spec(self) -> dict:
        """Returns the head in numbers, for the C++ machine."""
        return {
            "kind": self.kind,
            "levels": self.levels,
            "mixtures": self.mixtures,
            "coupled_channels": self.coupled or 0,
            "feed_raw": self.feed_raw,
            "min_log_scale": self.min_log_scale,
            "inputs": np.zeros(0, np.float32) if self.inputs is None else self.inputs.numpy(),
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.config().items() if k != 'to_input')})"

    def _to_input_config(self) -> str | list[float] | None:
        return self.to_input_name if self.inputs is None or self.to_input_name != "table" else self.inputs.tolist()


MOST_LEVELS = 1 << 20
"""Of levels, and of mixtures: a table of so many inputs takes 4 MiB."""
LEAST_TEMPERATURE = torch.finfo(torch.float32).tiny
"""Any float32 logit divided by it is finite in float64."""


def check_count(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= value <= MOST_LEVELS:
        raise ValueError(f"{name} must be an integer, {least} or more, and at most {MOST_LEVELS}, got {value!r:.100}")
    return int(value)


def check_min_log_scale(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"min_log_scale must be finite, got {value!r:.100}")
    return float(value)


def inverse_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """Returns the first index whose cumulated weight exceeds ``uniform * total``.

    Past the end, it is the last of non-zero weight.

    float64 ``[..., L]`` and ``[...]`` to int64 ``[...]``.
    """
    cumulated = weights.cumsum(-1)
    beyond = cumulated > (uniform * cumulated[..., -1])[..., None]
    count = weights.shape[-1]
    last = count - 1 - (weights > 0).flip(-1).byte().argmax(-1)
    return torch.where(beyond.any(-1), beyond.byte().argmax(-1), last)


def check_distribution(top: Tensor, position: int) -> None:
    """``top``: the greatest logit of each distribution."""
    if not top.isfinite().all():
        raise ValueError(
            f"the network's output at position {position} makes no distribution: its greatest logit is not finite"
        )


def _turned(output: Tensor, layouts: list[tuple[int, ...]]) -> str:
    """Returns the adapter to pass, where an output has the right sizes in another order."""
    shape = list(output.shape)
    ways = [
        (f"movedim({d}, 1)", shape[:1] + shape[d : d + 1] + shape[1:d] + shape[d + 1 :]) for d in range(2, len(shape))
    ]
    ways += [("transpose(0, 1)", shape[1:2] + shape[:1] + shape[2:]), ("permute(1, 2, 0)", shape[1:] + shape[:1])]
    for way, turned in ways:
        if tuple(turned[1:]) in layouts:
            return f". Its dimensions lie in another order: pass adapter=lambda output: output.{way}"
    return ""


def _input_table(levels: int, to_input: str | Tensor | None) -> Tensor | None:
    if not levels:
        return None
    if isinstance(to_input, Tensor):
        if to_input.shape != (levels,) or not to_input.is_floating_point() or not to_input.isfinite().all():
            given = f"{to_input.dtype} {list(to_input.shape)}"
            raise ValueError(f"to_input must be a table of finite floating-point values [{levels}], got {given}")
        return to_input.detach().cpu().float().contiguous()
    level = torch.arange(levels, dtype=torch.float64, device="cpu")
    unit = level / (levels - 1)
    tables = {None: level, "index": level, "float": level, "unit": unit, "symmetric": 2 * level / (levels - 1) - 1}
    if not isinstance(to_input, str | None) or to_input not in tables:
        names = ", ".join(repr(name) for name in tables if name)
        raise ValueError(f"to_input must be None, {names} or a tensor of {levels} values, got {to_input!r}")
    return tables[to_input].float()
