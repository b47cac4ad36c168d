"""Flows as ``torch.distributions`` has them: a layer as a ``Transform``, a flow with its base as a ``Distribution``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, TransformedDistribution, Uniform, constraints
from torch.distributions.transforms import SigmoidTransform, Transform

Context = Tensor | Mapping[str, Tensor] | None


class FlowTransform(Transform):
    """A flow layer as a transform from noise to data: ``transform(z)`` is ``layer.inverse(z)[0]``.

    A flow layer's ``forward`` goes from data to noise, a transform of a ``TransformedDistribution`` from the base to
    the data; so ``transform.inv`` is the layer's ``forward``. ``log_abs_det_jacobian(z, x)`` is ``-layer(x)[1]``, by
    the layer's forward pass (the parallel one of most), unless the pair is the cached one.

    z is [..., *latent_shape], x is [..., *event_shape]. With a context of B rows both are [..., B, *shape], or
    [..., 1, *shape], which is broadcast.

    Args:
        layer: a module with ``forward(x, context)`` and ``inverse(z, context)``, or of one argument for a context of
            None, both of which return the result [N, *shape] and the log-determinant [N]. Layers of ``fastgen.nn`` and
            models of ``fastgen.models.flows`` are such.
        event_shape: of one x.
        latent_shape: of one z, with as many elements; None means event_shape.
        context: what the layer takes with every batch, a tensor [B, ...] or several by name; None has none.
        cache_size: 1 keeps the last pair and its log-determinant, as torch's transforms do: it stays valid only as long
            as the layer's parameters do not change.

    Raises:
        TypeError: the layer has no method ``inverse``.
        ValueError: shapes of different numbers of elements, or contexts of different numbers of rows; a z or x that
            does not fit, when it is called.

    Example:
        >>> from fastgen.nn import ActNorm, AffineCoupling, FlowSequential, MLP
        >>> flow = FlowSequential(ActNorm(4), AffineCoupling(MLP(2, 4))).eval()
        >>> base = Independent(Normal(torch.zeros(4), torch.ones(4)), 1)
        >>> density = TransformedDistribution(base, [FlowTransform(flow, event_shape=(4,))])
        >>> density.log_prob(density.sample((5,))).shape
        torch.Size([5])
    """

    bijective = True

    def __init__(
        self,
        layer: nn.Module,
        event_shape: Sequence[int],
        *,
        latent_shape: Sequence[int] | None = None,
        context: Context = None,
        cache_size: int = 0,
    ) -> None:
        if not callable(getattr(layer, "inverse", None)):
            raise TypeError(f"layer is a {type(layer).__name__}; a flow layer must have a method inverse")
        super().__init__(cache_size)
        self.layer, self.context = layer, context
        self.event_shape = torch.Size(event_shape)
        self.latent_shape = self.event_shape if latent_shape is None else torch.Size(latent_shape)
        if prod(self.event_shape) != prod(self.latent_shape):
            shapes = tuple(self.event_shape), tuple(self.latent_shape)
            raise ValueError(
                f"event_shape is {shapes[0]} and latent_shape is {shapes[1]}; they must have as many elements"
            )
        rows = {len(part) for part in _parts(context).values()}
        if len(rows) > 1:
            raise ValueError(f"context has tensors of {sorted(rows)} rows; they must have as many")
        self.batch_shape = torch.Size(rows)
        self._cached_log_det: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def domain(self) -> constraints.Constraint:  # type: ignore[override]  # torch's own transforms do so, too
        return constraints.independent(constraints.real, len(self.latent_shape))

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.independent(constraints.real, len(self.event_shape))

    def with_cache(self, cache_size: int = 1) -> FlowTransform:
        if cache_size == self._cache_size:
            return self
        return FlowTransform(
            self.layer,
            self.event_shape,
            latent_shape=self.latent_shape,
            context=self.context,
            cache_size=cache_size,
        )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, FlowTransform)
            and (self.layer is other.layer and self.context is other.context)
            and (self.event_shape, self.latent_shape) == (other.event_shape, other.latent_shape)
        )

    __hash__ = Transform.__hash__

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        return self._batch_of(shape, "z", self.latent_shape) + self.event_shape

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        return self._batch_of(shape, "x", self.event_shape) + self.latent_shape

    def to_data(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z to (x, log |det dx/dz| [...])."""
        return self._run(self.layer.inverse, z, "z", self.latent_shape, self.event_shape)

    def to_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x to (z, log |det dz/dx| [...])."""
        return self._run(self.layer, x, "x", self.event_shape, self.latent_shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of the pass from noise ``x`` to data ``y``, [...]."""
        if self._cached_log_det is not None:
            noise, data, log_det = self._cached_log_det
            if noise is x and data is y:
                return log_det
        return -self.to_noise(y)[1]

    def _call(self, x: Tensor) -> Tensor:
        data, log_det = self.to_data(x)
        self._keep(x, data, log_det)
        return data

    def _inverse(self, y: Tensor) -> Tensor:
        noise, log_det = self.to_noise(y)
        self._keep(noise, y, -log_det)
        return noise

    def _keep(self, noise: Tensor, data: Tensor, log_det: Tensor) -> None:
        if self._cache_size:
            self._cached_log_det = noise, data, log_det

    def _run(self, function, x: Tensor, name: str, given: torch.Size, made: torch.Size) -> tuple[Tensor, Tensor]:
        batch = self._batch_of(x.shape, name, given)
        rows = x.expand(batch + given).reshape(batch.numel(), *given)
        context = self._context_of(batch)
        y, log_det = function(rows) if context is None else function(rows, context)
        return y.reshape(batch + made), log_det.reshape(batch)

    def _batch_of(self, shape: Sequence[int], name: str, event: torch.Size) -> torch.Size:
        """The batch shape of what has a shape, broadcast with the rows of the context."""
        shape = torch.Size(shape)
        cut = len(shape) - len(event)
        if cut < 0 or shape[cut:] != event:
            raise ValueError(f"{name} must have shape [..., {', '.join(map(str, event))}], got {tuple(shape)}")
        try:
            return torch.broadcast_shapes(shape[:cut], self.batch_shape)
        except RuntimeError:
            raise ValueError(
                f"{name} has batch shape {tuple(shape[:cut])}; the context has {self.batch_shape[0]} rows"
            ) from None

    def _context_of(self, batch: torch.Size) -> Context:
        """The context of every row of a batch."""
        parts = {
            name: part.expand(batch + part.shape[1:]).reshape(batch.numel(), *part.shape[1:])
            for name, part in _parts(self.context).items()
        }
        return parts if isinstance(self.context, Mapping) else parts.get("")


class FlowDistribution(TransformedDistribution):
    """A flow with its base as a distribution: ``log_prob``, ``sample`` and ``rsample`` are one pass each.

    ``log_prob(x)`` is ``base.log_prob(z) + log_det`` for ``(z, log_det) = flow(x, context)``; a sample is
    ``flow.inverse(z, context)`` for z of the base, from PyTorch's generator. Gradients reach x, the context and the
    flow's parameters. With a context of B rows the batch shape is [B]. For a model with levels this is the density of
    dequantized data, (v + u) / levels.

    Args:
        flow: a model of ``fastgen.models.flows`` (it says its event shape and base itself), or any layer that
            ``FlowTransform`` takes.
        event_shape: of one x; for a layer.
        latent_shape: of one z; None means event_shape, or for a model [D].
        base: distribution of z of event shape ``latent_shape``; None is the model's, or the standard normal with the
            dtype and device of the flow's parameters.
        context: a tensor [B, ...] or several by name; None has none.
        validate_args: whether ``log_prob`` checks its argument, and the model's base its own; None is torch's default.

    Raises:
        TypeError: the flow has no method ``inverse``.
        ValueError: a layer without event_shape, a base of another event shape or a batch shape that does not fit the
            context; what ``FlowTransform`` refuses.

    Example:
        >>> from fastgen.nn import MADE, MaskedAffineAutoregressive
        >>> density = FlowDistribution(MaskedAffineAutoregressive(3, hidden=(16,), context_features=2), (3,),
        ...                            context=torch.randn(5, 2))
        >>> density.batch_shape, density.rsample((7,)).shape
        (torch.Size([5]), torch.Size([7, 5, 3]))
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(
        self,
        flow: nn.Module,
        event_shape: Sequence[int] | None = None,
        *,
        latent_shape: Sequence[int] | None = None,
        base: Distribution | None = None,
        context: Context = None,
        validate_args: bool | None = None,
    ) -> None:
        config = getattr(flow, "config", None)
        if event_shape is None:
            if config is None:
                raise ValueError(
                    f"event_shape must be given for a {type(flow).__name__}, which has no config, got None"
                )
            event_shape = config.event_shape
        if latent_shape is None:
            latent_shape = event_shape if config is None else (prod(event_shape),)
        transform = FlowTransform(flow, event_shape, latent_shape=latent_shape, context=context)
        if base is None:
            base = _standard(getattr(config, "base", "normal"), transform.latent_shape, flow, validate_args)
        elif base.event_shape != transform.latent_shape:
            shapes = tuple(base.event_shape), tuple(transform.latent_shape)
            raise ValueError(f"base must have the event shape of the latents, {shapes[1]}, got {shapes[0]}")
        self.flow, self.context = flow, context
        super().__init__(base, [transform], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: FlowDistribution | None = None) -> FlowDistribution:
        new = self.__new__(type(self)) if _instance is None else _instance
        new.flow, new.context = self.flow, self.context
        return super().expand(torch.Size(batch_shape), new)

    @property
    def _transform(self) -> FlowTransform:
        return cast(FlowTransform, self.transforms[0])

    def log_prob(self, value: Tensor) -> Tensor:
        empty = isinstance(value, Tensor) and not value.numel()
        if self._validate_args and not empty:  # torch's constraints cannot look at a batch of none
            self._validate_sample(value)
        z, log_det = self._transform.to_noise(value)
        if empty:
            return log_det.expand(torch.broadcast_shapes(log_det.shape, self.batch_shape))
        return self.base_dist.log_prob(z) + log_det

    def rsample_with_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """A sample [*sample_shape, *batch_shape, *event_shape] and its log-density, both of the sampling pass alone."""
        z = self.base_dist.rsample(torch.Size(sample_shape))
        x, log_det = self._transform.to_data(z)
        return x, self.base_dist.log_prob(z) - log_det


def _standard(name: str, shape: torch.Size, flow: nn.Module, validate_args: bool | None) -> Distribution:
    """The standard normal or logistic distribution of latents."""
    example = next(flow.parameters(), torch.empty(0))
    zeros = torch.zeros(shape, dtype=example.dtype, device=example.device)
    each: Distribution = Normal(zeros, 1.0, validate_args)
    if name == "logistic":
        uniform = Uniform(zeros, torch.ones_like(zeros), validate_args)
        each = TransformedDistribution(uniform, [SigmoidTransform().inv], validate_args)
    return Independent(each, len(shape), validate_args)


def _parts(context: Context) -> Mapping[str, Tensor]:
    return context if isinstance(context, Mapping) else {} if context is None else {"": context}
