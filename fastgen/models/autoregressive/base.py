"""The base of autoregressive models: score by one parallel forward, sample by a compiled sampler."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastgen
from fastgen.generate.errors import CompileError
from fastgen.generate.heads import Head
from fastgen.models.base import Model, ModelConfig
from fastgen.models.context import Context, check_context, split_context


class _Compiled(NamedTuple):
    sampler: Any
    weights: dict[str, Tensor]


class AutoregressiveModel(Model):
    """``forward(x, context=None)`` maps the input of every element to the parameters of ``head`` for the same element.

    ``x`` is ``head.to_input(levels)``; floats are cast to the dtype of the model's parameters, a context's too. The
    parameters of an element depend on the elements before it in ``order`` only.
    """

    family = "autoregressive"
    real_numbers = False
    baseline = "histogram"
    predicts = "same"

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__(config)
        self._compiled: dict[tuple, _Compiled] = {}

    @property
    @abstractmethod
    def head(self) -> Head:
        """The distribution of an element given the network's output."""

    @property
    @abstractmethod
    def order(self) -> str:
        """The order of generation, as ``fastgen.Sampler`` takes it."""

    @abstractmethod
    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """The head's parameters."""

    def inputs(self, x: Tensor, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns x and the context by name, their floats in the dtype of the model's parameters.

        Raises:
            ValueError: a context other than the config's.
        """
        dtype = next(self.parameters()).dtype
        return _cast(x, dtype), {k: _cast(v, dtype) for k, v in split_context(context, self.conditions).items()}

    def log_prob(self, levels: Tensor, context: Context = None) -> Tensor:
        """Log-probability [N] in nats, summed over the elements, of integer levels [N, *event_shape] of any size.

        It is float64 for parameters in float64, else float32.

        Raises:
            ValueError: ``levels`` or ``context`` has a wrong shape, dtype or value.
        """
        shape = self.config.event_shape
        if levels.dim() != 1 + len(shape) or (len(shape) > 1 and levels.shape[1] != shape[0]):
            wanted = ", ".join(map(str, ("N", *shape)))
            raise ValueError(f"levels must be like [{wanted}], got shape {tuple(levels.shape)}")
        check_context(context, self.conditions, levels.shape[0])
        return self.head.log_prob(self(self.head.to_input(levels), context), levels)

    def score(self, levels: Tensor, context: Context = None) -> Tensor:
        """``log_prob``."""
        return self.log_prob(levels, context)

    def sampler(
        self, *, event_shape: tuple[int, ...] | None = None, weights: str = "float32", machine: str | None = None
    ) -> fastgen.Sampler:
        """``fastgen.Sampler`` with this model's head and order, for an event shape (the config's).

        It is compiled once, refreshed whenever the model's weights have changed since, and compiled again where weights
        that were zero, which it left out, no longer are.
        """
        event_shape = tuple(event_shape or self.config.event_shape)
        example = next(self.parameters())
        key = (event_shape, weights, machine, example.dtype, example.device)
        current = self.state_dict()
        compiled = self._compiled.get(key)
        if compiled is not None and all(torch.equal(current[name], old) for name, old in compiled.weights.items()):
            return compiled.sampler
        sampler = None if compiled is None else _refreshed(compiled.sampler)
        if sampler is None:
            sampler = fastgen.Sampler(
                self,
                event_shape=event_shape,
                head=self.head,
                order=self.order,
                weights=weights,
                predicts=self.predicts,
                example_context=self.example_context(event_shape=event_shape),
                machine=machine,
            )
        self._compiled[key] = _Compiled(sampler, {name: value.detach().clone() for name, value in current.items()})
        return sampler

    def sample(
        self,
        n: int,
        seed: int = 0,
        context: Context = None,
        *,
        event_shape: tuple[int, ...] | None = None,
        weights: str = "float32",
        machine: str | None = None,
        **options: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Levels [n, *event_shape], by the compiled sampler.

        Args:
            n, seed, context: as in ``fastgen.Sampler.sample``; the context has n rows.
            event_shape: another size or length than the config's.
            weights: "float32", or an approximation by name: "bfloat16", "int8".
            machine: "cpu" or "reference"; None for the faster one that is there.
            options: for ``fastgen.Sampler.sample``: temperature, top_p, known, known_mask, return_log_prob, progress...
        """
        check_context(context, self.conditions, n)
        sampler = self.sampler(event_shape=event_shape, weights=weights, machine=machine)
        return sampler.sample(n, seed=seed, context=context, **options)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the compiled samplers behind."""
        return {**super().__getstate__(), "_compiled": {}}


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() and value.dtype != dtype else value


def _refreshed(sampler: fastgen.Sampler) -> fastgen.Sampler | None:
    """The sampler with its module's weights; None where it left out zeros that no longer are."""
    try:
        sampler.refresh()
    except CompileError:
        return None
    return sampler
