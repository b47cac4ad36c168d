"""The base of flows: a density by the change of variables, samples by its inverse, discrete data dequantized."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.distributions import standard_logistic_log_prob, standard_normal_log_prob
from fastgen.models.base import Model, ModelConfig
from fastgen.models.context import Condition, Context, check_context, split_context
from fastgen.nn import FixedPointNotConverged, FlowLayer, SolverLimitExceeded
from fastgen.ops.arguments import has_numbers
from fastgen.ops.philox_uniform import philox_uniform
from fastgen.ops.seeds import fold_in

BASES = {"normal": standard_normal_log_prob, "logistic": standard_logistic_log_prob}


@dataclass(frozen=True)
class FlowConfig(ModelConfig):
    """``levels=0``: the data are real numbers; otherwise integers below ``levels``, which the model dequantizes."""

    event_shape: tuple[int, ...] = (2,)
    levels: int = 0
    classes: int = 0
    """Number of classes of a label in the context; 0 has no label."""
    vector: int = 0
    """Width of a vector in the context; 0 has none."""
    base: str = "normal"
    """Density of the latents: "normal" or "logistic"."""

    def check_levels(self) -> None:
        if self.levels:
            self.at_least(2, "levels")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "classes", "vector")
        self.one_of("base", BASES)

    def check_vector(self) -> None:
        if len(self.event_shape) != 1:
            raise ValueError(f"event_shape must be (features,), got {self.event_shape}")

    @property
    def context_features(self) -> int | None:
        """Width of what ``FlowModel.encode`` makes of a context; None without one."""
        return self.classes + self.vector or None


class NoSamples(ValueError):
    """The inverse of a flow overflows, or is not found."""


class FlowModel(Model):
    """A flow between data x [N, *event_shape] and latents z [N, D] of a simple density, D numbers in an event.

    x, z and the context are cast to the dtype of the model's parameters; log-densities are float64 for parameters in
    float64, else float32.

    A subclass makes ``flow``, a ``FlowSequential`` or ``MultiScale`` from x to z, or another flow layer whose methods
    take (x, context, seed), with a context [N, context_features] or None. For discrete
    data x lies in [0, 1): level v with its noise u in [0, 1) is (v + u) / levels. Noise is uniform unless the subclass
    sets ``dequantization``, a module that maps levels, noise and the encoded context to (u, log q of u [N]).
    """

    family = "flow"
    real_numbers = True
    baseline = "gaussian"

    config: FlowConfig
    flow: nn.Module
    dequantization: nn.Module | None

    def __init__(self, config: FlowConfig | None = None) -> None:
        super().__init__(config)
        self.register_module("dequantization", None)

    @property
    def conditions(self) -> dict[str, Condition]:
        found = {}
        if self.config.classes:
            found["class"] = Condition(classes=self.config.classes)
        if self.config.vector:
            found["vector"] = Condition((self.config.vector,))
        return found

    def encode(self, context: Context, n: int) -> Tensor | None:
        """The context of a batch of n as one tensor [n, context_features]: the label as one-hot, then the vector.

        Raises:
            ValueError: a condition is missing or not asked for, a tensor has the wrong shape, number of rows or dtype,
                or (seen on the CPU) a label is out of range.
        """
        given = split_context(context, self.conditions, n)
        if not given:
            return None
        for name, value in given.items():
            if has_numbers(value):
                self.conditions[name].check_values(name, value)
        dtype = next(self.parameters()).dtype
        parts = [F.one_hot(given["class"], self.config.classes).to(dtype)] if "class" in given else []
        return torch.cat([*parts, given["vector"].to(dtype)] if "vector" in given else parts, 1)

    def forward(self, x: Tensor, context: Context = None, *, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """x [N, *event_shape] to (z [N, D], log_det [N]).

        ``seed`` is of the noise of a model that estimates its log-determinant; None draws it from PyTorch's generator.
        """
        self._check(x, "x", self.config.event_shape)
        return self.flow(self._cast(x), self.encode(context, len(x)), seed)

    def inverse(self, z: Tensor, context: Context = None, *, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """z [N, D] to (x [N, *event_shape], log_det [N] of that)."""
        self._check(z, "z", (prod(self.config.event_shape),))
        return self.flow.inverse(self._cast(z), self.encode(context, len(z)), seed)

    def _cast(self, x: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        return x.to(dtype) if x.dtype != dtype and x.is_floating_point() else x

    def log_prob(self, x: Tensor, context: Context = None, *, seed: int | None = None) -> Tensor:
        """Log-density [N] in nats of real x [N, *event_shape]; for discrete data, that of dequantized x in [0, 1).

        Args:
            seed: as of ``forward``.

        Raises:
            ValueError: x or the context has another shape or dtype, x is integer, or (seen on the CPU) not finite.
        """
        if not x.is_floating_point():
            raise ValueError(f"x must be floating point (for levels there is elbo), got {x.dtype}")
        _check_finite(x)
        z, log_det = self(x, context, seed=seed)
        return self.base_log_prob(z) + log_det

    def elbo(
        self, levels: Tensor, context: Context = None, *, noise: Tensor | None = None, seed: int | None = None
    ) -> Tensor:
        """A lower bound [N] in nats of the log-probability of integer levels [N, *event_shape], by one draw of noise::

            log p((v + u) / L) - D log L - log q(u | v)

        Args:
            noise: uniform on (0, 1), like levels, from which u is made; None draws it from PyTorch's generator.
            seed: as of ``forward``.

        Raises:
            ValueError: the model is of real numbers; levels, context or noise has another shape, dtype or value.
        """
        count = self.config.levels
        if not count:
            raise ValueError(
                "levels must be 2 or more in the model's config for elbo (a model of real numbers has log_prob), got 0"
            )
        self._check(levels, "levels", self.config.event_shape)
        if levels.is_floating_point() or (levels.numel() and not 0 <= levels.min() <= levels.max() < count):
            raise ValueError(f"levels must be integers from 0 to {count - 1}, got {levels.dtype}, or others")
        check_context(context, self.conditions, len(levels))
        dtype = next(self.parameters()).dtype
        if noise is None:
            noise = torch.rand(levels.shape, dtype=dtype, device=levels.device)
        elif noise.shape != levels.shape:
            raise ValueError(f"noise must have the shape of levels, {tuple(levels.shape)}, got {tuple(noise.shape)}")
        log_q: Tensor | float = 0.0
        if self.dequantization is not None:
            noise, log_q = self.dequantization(levels, noise, self.encode(context, len(levels)))
        x = (levels + noise) / count
        return self.log_prob(x, context, seed=seed) - log_q - prod(levels.shape[1:]) * math.log(count)

    def score(self, x: Tensor, context: Context = None) -> Tensor:
        """``elbo`` of levels, ``log_prob`` of real numbers."""
        return self.elbo(x, context) if self.config.levels and not x.is_floating_point() else self.log_prob(x, context)

    def estimates(self) -> tuple[str, ...]:
        layers = {layer.estimate: None for layer in self._layers() if layer.estimate}
        bound = ("a lower bound, by one draw of dequantization noise an example",) if self.config.levels else ()
        return (*bound, *layers)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Runs the batch in training mode, in which it leaves the model, where a layer is set by its first batch."""
        self.train()
        if any(layer.set_by_first_batch for layer in self._layers()):
            self.score(x, context)

    def _layers(self) -> Iterator[FlowLayer]:
        """Yields the flow layers, those inside of others too."""
        return (layer for layer in self.modules() if isinstance(layer, FlowLayer))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        seed: int = 0,
        context: Context = None,
        *,
        temperature: float = 1.0,
        offset: int = 0,
        return_log_prob: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """n samples: real x [n, *event_shape], or int64 levels.

        Args:
            seed: of the noise. A sample depends on the seed, its number and its context alone.
            context: n rows.
            temperature: factor of the latents' scale; 1 draws from the model.
            offset: number of the first sample.
            return_log_prob: the log-density [n] of what was drawn too; of real numbers only, at any temperature.

        Raises:
            ValueError: a number out of range; a context of another shape or number of rows.
            NoSamples: a ValueError, where the inverse overflows, or does not converge.
        """
        if n < 0:
            raise ValueError(f"n must be 0 or more, got {n}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be a finite number above 0, got {temperature}")
        if return_log_prob and self.config.levels:
            raise ValueError(
                "return_log_prob must be False for a flow of levels, which has only a bound (elbo), got True"
            )
        check_context(context, self.conditions, n)
        example = next(self.parameters())
        z = temperature * self._noise(n, seed, offset, example.device).to(example.dtype)
        try:
            x, log_det = self.inverse(z, context, seed=fold_in(seed, 0))
        except (FixedPointNotConverged, SolverLimitExceeded) as error:
            raise NoSamples(f"the inverse of {self.name} is not found: {error}") from error
        if wrong := int((~x.isfinite()).flatten(1).any(1).sum()):
            raise NoSamples(
                f"{wrong} of {n} samples are not finite: the inverse of {self.name} overflows; train it for more "
                "steps, or draw at a lower temperature"
            )
        if self.config.levels:
            return (x * self.config.levels).floor().clamp(0, self.config.levels - 1).long()
        return (x, self.base_log_prob(z) - log_det) if return_log_prob else x

    def base_log_prob(self, z: Tensor) -> Tensor:
        """Log-density [N] of latents z [N, D], in float32 at least."""
        return BASES[self.config.base](z)

    def _noise(self, n: int, seed: int, offset: int, device: torch.device) -> Tensor:
        samples = torch.arange(offset, offset + n, device=device)
        positions = torch.arange(prod(self.config.event_shape), device=device)
        uniform = philox_uniform(seed, samples, positions, 0, 0)
        return torch.special.ndtri(uniform) if self.config.base == "normal" else uniform.logit()

    @staticmethod
    def _check(x: Tensor, name: str, shape: tuple[int, ...]) -> None:
        if x.shape[1:] != shape:
            raise ValueError(f"{name} must have shape [N, {', '.join(map(str, shape))}], got {tuple(x.shape)}")


def _check_finite(x: Tensor) -> None:
    if has_numbers(x):
        finite = torch.isfinite(x)
        if not finite.all():
            raise ValueError(f"x must be finite, got {int((~finite).sum())} values that are not")
