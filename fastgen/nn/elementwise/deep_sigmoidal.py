"""The monotone networks of neural autoregressive flows, element by element."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.elementwise.monotone_transform import MonotoneTransform
from fastgen.ops.arguments import check_integers

_LEAST = 1e-6
_RAW_ONE = math.log(math.expm1(1 - _LEAST))


class DeepSigmoidal(MonotoneTransform):
    """A deep sigmoidal flow on every element: ``forward(x, parameters)`` and ``inverse``, as ``MonotoneTransform`` has.

    Each layer maps its scalar input by the logit of a mixture of K sigmoids::

        y = logit(sum_k w_k sigmoid(a_k x + b_k)),   a = softplus(raw a + 0.54),   w = softmax(raw w)

    where 0.54 makes a = 1 of a raw one that is 0, so that parameters of 0 make the identity; a is 1e-6 at least. Value
    and log-derivative come from log-sigmoids by logsumexp alone, so they are finite for every finite x of sensible
    size, 1e3 and more.

    Args:
        units: K.
        layers: how many such maps follow one another.

    Raises:
        ValueError: a number below 1; shapes that do not fit.

    Reference: Huang, Krueger, Lacoste, Courville, "Neural autoregressive flows", ICML 2018.

    Example:
        >>> transform = DeepSigmoidal(units=4)
        >>> x, parameters = torch.randn(5, 2), torch.randn(5, 2, transform.parameters_per_element)
        >>> y, log_det = transform(x, parameters)
        >>> torch.allclose(transform.inverse(y, parameters)[0], x, atol=1e-4)
        True
    """

    def __init__(self, units: int = 16, layers: int = 1) -> None:
        check_integers(units=units, layers=layers)
        super().__init__(3 * units * layers)
        self.units, self.layers = units, layers

    def transform(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_slope = torch.zeros_like(x)
        for part in parameters.chunk(self.layers, -1):
            raw_a, b, raw_w = part.chunk(3, -1)
            a = _slopes(raw_a)
            x, log_derivative = _logit_of_mixture(a * x.unsqueeze(-1) + b, raw_w.log_softmax(-1), a.log())
            log_slope = log_slope + log_derivative
        return x, log_slope

    def extra_repr(self) -> str:
        return f"units={self.units}, layers={self.layers}"


class DeepDenseSigmoidal(MonotoneTransform):
    """A deep dense sigmoidal flow on every element: ``forward(x, parameters)`` and ``inverse``, as
    ``MonotoneTransform`` has.

    A layer maps h of I units to O units through K hidden ones, with a as in ``DeepSigmoidal`` and rows of weights that
    are softmaxes::

        h' = logit(W sigmoid(a (U h) + b)),   U = softmax(raw U + u) [K, I],   W = softmax(raw W + w) [O, K]

    x is the only unit before the first layer and y the only one after the last; between layers there are K. The
    matrices raw U and raw W are the layer's own, for all elements; a, b, u [I] and w [K] come with each element. The
    log-derivative of every unit by x goes through the layers as a logsumexp.

    Args:
        units: K.
        layers: how many.

    Raises:
        ValueError: a number below 1; shapes that do not fit.

    Reference: Huang, Krueger, Lacoste, Courville, "Neural autoregressive flows", ICML 2018.

    Example:
        >>> transform = DeepDenseSigmoidal(units=4, layers=2)
        >>> x, parameters = torch.randn(5, 2), torch.randn(5, 2, transform.parameters_per_element)
        >>> y, log_det = transform(x, parameters)
        >>> torch.allclose(transform.inverse(y, parameters)[0], x, atol=1e-4)
        True
    """

    def __init__(self, units: int = 16, layers: int = 1) -> None:
        check_integers(units=units, layers=layers)
        widths = [1, *[units] * (layers - 1), 1]
        sizes = [(units, units, before, units) for before in widths[:-1]]
        super().__init__(sum(map(sum, sizes)))
        self.units, self._sizes = units, sizes
        self.inner = nn.ParameterList(torch.randn(units, before) * 0.01 for before in widths[:-1])
        self.outer = nn.ParameterList(torch.randn(after, units) * 0.01 for after in widths[1:])

    def transform(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        h, log_slope = x.unsqueeze(-1), torch.zeros_like(x).unsqueeze(-1)
        parts = parameters.split([sum(sizes) for sizes in self._sizes], -1)
        for part, sizes, inner, outer in zip(parts, self._sizes, self.inner, self.outer, strict=True):
            raw_a, b, u, w = part.split(sizes, -1)
            a = _slopes(raw_a)
            log_u = (inner.to(x.dtype) + u.unsqueeze(-2)).log_softmax(-1)
            log_w = (outer.to(x.dtype) + w.unsqueeze(-2)).log_softmax(-1)
            units = a * (log_u.exp() * h.unsqueeze(-2)).sum(-1) + b
            log_inner = a.log() + (log_u + log_slope.unsqueeze(-2)).logsumexp(-1)
            h, log_slope = _logit_of_mixture(units.unsqueeze(-2), log_w, log_inner.unsqueeze(-2))
        return h.squeeze(-1), log_slope.squeeze(-1)

    def extra_repr(self) -> str:
        return f"units={self.units}, layers={len(self._sizes)}"


def _slopes(raw: Tensor) -> Tensor:
    """Returns the slopes of the sigmoids; 1 where raw is 0."""
    return F.softplus(raw + _RAW_ONE) + _LEAST


def _logit_of_mixture(units: Tensor, log_weights: Tensor, log_slopes: Tensor) -> tuple[Tensor, Tensor]:
    """logit(sum_k w_k sigmoid(s_k)) over the last dimension, and its log-derivative by that of every s_k."""
    log_on, log_off = F.logsigmoid(units), F.logsigmoid(-units)
    log_p, log_rest = (log_weights + log_on).logsumexp(-1), (log_weights + log_off).logsumexp(-1)
    log_density = (log_weights + log_on + log_off + log_slopes).logsumexp(-1)
    return log_p - log_rest, log_density - log_p - log_rest
