"""Invertible residual blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastgen.nn.flow.flow_layer import FlowLayer
from fastgen.nn.residual import residual_log_det
from fastgen.nn.residual.fixed_point import fixed_point
from fastgen.nn.residual.residual_log_det import DISTRIBUTIONS
from fastgen.ops.arguments import check_integers
from fastgen.ops.precision import in_float32, without_autocast
from fastgen.ops.seeds import draw_seed

LOG_DETS = ("exact", "power-series", "russian-roulette")
TRACES = ("hutchinson", "exact")
GRADIENTS = ("neumann", "autograd")


class InvertibleResidual(FlowLayer):
    """``z = x + g(x)`` with a g of Lipschitz constant below 1: ``forward(x, context=None, seed=None)`` and ``inverse``
    return (z or x, log_det [N]).

    With J the Jacobian of g, ``log det(I + J) = sum_k (-1)^(k+1) tr(J^k) / k``. ``log_det`` says how much of it::

        "exact":             all, from the Jacobian itself: D products, for small D
        "power-series":      ``terms`` terms, biased by the rest
        "russian-roulette":  ``exact_terms`` terms (``exact_terms_evaluation`` in eval mode) and N more, N drawn for the
                             batch; each is divided by the probability that it is reached: the mean is the whole series

    Each trace is v^T J^k v of one vector v of random signs ("hutchinson"), or exact, from the Jacobian, for small D.
    With ``gradient="neumann"`` the derivative of Hutchinson's series is that of w^T J v at the constant
    ``w = sum_k (-1)^(k-1) c_k (J^T)^(k-1) v``, whose memory does not grow with the terms: unbiased, each sample
    weighted by its own incoming gradient. "autograd" differentiates the series, to any order.

    In eval mode a sample of ``exact_features`` numbers or fewer has the exact log-determinant in any case: it costs
    less than the estimate.

    v and N come from ``seed``, an int, or None to draw one from PyTorch's generator: the same seed gives the same
    estimate, in both directions. Under ``torch.compile`` a seed must be given, and the roulette runs the longest
    series that it could draw.

    ``inverse`` solves ``x = z - g(x)`` by iteration, each sample until no element of ``x + g(x)`` is further than
    ``tolerance`` from z (or than 8 units in the last place of z's largest number, where that is more). Its gradient is
    that of the implicit function.

    x is float [N, ...]; half precision is computed in float32, also under autocast, log_det is float32 or float64.

    Args:
        net: g, called as ``net(x)`` or ``net(x, context)``; one with a method ``at(context)`` that gives g of x
            alone, such as ``LipschitzMLP`` and ``LipschitzConvNet``, is asked for it. g treats each sample by itself.
        log_det, trace, gradient: as above.
        terms: of "power-series".
        exact_terms, exact_terms_evaluation: of "russian-roulette".
        exact_features: see above.
        distribution: of N: "geometric" (on 1, 2, ...) or "poisson".
        parameter: its p, greater than 0.05 and less than 1, or its rate, at most 100; None is 0.5 or 2.
        tolerance, max_iterations: of the inverse.

    Raises:
        ValueError: an unknown name, a number out of range; a g that does not keep the shape.
        NotImplementedError: ``create_graph`` with the Neumann gradient, which has no derivative of its own.
        FixedPointNotConverged: the inverse needs more iterations, as where g is no contraction.

    References: Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen, "Invertible residual networks", ICML 2019; Chen,
    Behrmann, Duvenaud, Jacobsen, "Residual flows for invertible generative modeling", NeurIPS 2019.

    Example:
        >>> from fastgen.nn import LipschitzMLP
        >>> layer = InvertibleResidual(LipschitzMLP(2, (16, 16), zero=False)).eval()
        >>> x = torch.randn(5, 2)
        >>> z, log_det = layer(x, seed=0)
        >>> back, inverse_log_det = layer.inverse(z, seed=0)
        >>> torch.allclose(back, x, atol=1e-3), torch.allclose(log_det, -inverse_log_det, atol=1e-3)
        (True, True)
    """

    takes_context = True
    takes_seed = True

    def __init__(
        self,
        net: nn.Module,
        *,
        log_det: str = "russian-roulette",
        trace: str = "hutchinson",
        gradient: str = "neumann",
        terms: int = 5,
        exact_terms: int = 2,
        exact_terms_evaluation: int = 20,
        exact_features: int = 2,
        distribution: str = "geometric",
        parameter: float | None = None,
        tolerance: float = 1e-5,
        max_iterations: int = 1000,
    ) -> None:
        for name, value, allowed in (
            ("log_det", log_det, LOG_DETS),
            ("trace", trace, TRACES),
            ("gradient", gradient, GRADIENTS),
            ("distribution", distribution, tuple(DISTRIBUTIONS)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
        check_integers(
            terms=terms,
            exact_terms=exact_terms,
            exact_terms_evaluation=exact_terms_evaluation,
            max_iterations=max_iterations,
        )
        check_integers(0, exact_features=exact_features)
        if parameter is None:
            parameter = 0.5 if distribution == "geometric" else 2.0
        low, high = DISTRIBUTIONS[distribution]
        if not low < parameter < high:
            raise ValueError(
                f"parameter must be greater than {low} and less than {high} for {distribution!r}, got {parameter}"
            )
        if not tolerance > 0:
            raise ValueError(f"tolerance must be greater than 0, got {tolerance}")
        super().__init__()
        self.net = net
        self.log_det, self.trace, self.gradient, self.terms = log_det, trace, gradient, terms
        self.exact_terms, self.exact_terms_evaluation = exact_terms, exact_terms_evaluation
        self.exact_features, self.distribution, self.parameter = exact_features, distribution, parameter
        self._reached = residual_log_det.survival(distribution, parameter)
        self.tolerance, self.max_iterations = tolerance, max_iterations

    @property
    def estimate(self) -> str | None:
        """How log-determinants of more than ``exact_features`` numbers are estimated in eval mode; None: exactly."""
        if self.log_det == "exact":
            return None
        traces = "one probe" if self.trace == "hutchinson" else "exact traces"
        terms = f"{self.terms} terms of the series, biased by the rest"
        if self.log_det == "russian-roulette":
            terms = f"{self.exact_terms_evaluation} terms of the series and a random number more, unbiased"
        return f"log-determinants of more than {self.exact_features} numbers by {terms}; {traces} a term"

    def forward(self, x: Tensor, context: Tensor | None = None, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """x to (z, log_det [N])."""
        (wide,) = in_float32(x)
        with without_autocast(x):
            g, log_det = self._value_and_log_det(self._g(context), wide, seed)
            return (wide + g).to(x.dtype), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """z to (x, log_det [N] of that)."""
        (wide,) = in_float32(z)
        with without_autocast(z):
            g = self._g(context)
            x = self._solve(g, wide, context)
            if torch.is_grad_enabled():
                x = self._with_gradient(x, wide, g)
            return x.to(z.dtype), -self._value_and_log_det(g, x, seed)[1]

    def _g(self, context: Tensor | None) -> Callable[[Tensor], Tensor]:
        at = getattr(self.net, "at", None)
        if callable(at):
            return at(context)
        return self.net if context is None else lambda x: self.net(x, context)

    def _value_and_log_det(self, g: Callable[[Tensor], Tensor], x: Tensor, seed: int | None) -> tuple[Tensor, Tensor]:
        if self.log_det == "exact" or (not self.training and x.shape[1:].numel() <= self.exact_features):
            return residual_log_det.exact(g, x)
        if self.trace == "hutchinson" or self.log_det == "russian-roulette":
            seed = draw_seed() if seed is None else seed
        coefficients = self._coefficients(seed, x)
        if self.trace == "exact":
            return residual_log_det.series_of_traces(g, x, coefficients)
        series = residual_log_det.series if self.gradient == "autograd" else residual_log_det.neumann_series
        return series(g, x, residual_log_det.probe(x, seed), coefficients)

    def _coefficients(self, seed: int | None, x: Tensor) -> Tensor:
        if self.log_det == "power-series":
            return x.new_ones(self.terms)
        exact_terms = self.exact_terms if self.training else self.exact_terms_evaluation
        return residual_log_det.roulette(self._reached, exact_terms, seed, x.device).to(x.dtype)

    @torch.no_grad()
    def _solve(self, g: Callable[[Tensor], Tensor], z: Tensor, context: Tensor | None) -> Tensor:
        def step(x: Tensor, rows: Tensor) -> Tensor:
            here = g if context is None or len(rows) == z.shape[0] else self._g(context[rows])
            return z[rows] - here(x)

        return fixed_point(step, z, tolerance=self.tolerance, max_iterations=self.max_iterations)

    def _with_gradient(self, x: Tensor, z: Tensor, g: Callable[[Tensor], Tensor]) -> Tensor:
        """x with the derivative (I + J)^-1 (dz - dg): a step of the iteration has dz - dg."""
        after = z - g(x)
        if not after.requires_grad:
            return x

        def solve(gradient: Tensor | None) -> Tensor | None:
            if gradient is None:  # x is not used
                return None
            pull = residual_log_det.Products(g, x).pull
            return fixed_point(
                lambda solved, rows: (gradient - pull(_scatter(solved, rows, x.shape[0])))[rows],
                gradient,
                tolerance=self.tolerance * float(gradient.abs().max()),
                max_iterations=self.max_iterations,
            )

        after.register_hook(solve)
        return after + (x - after).detach()

    def extra_repr(self) -> str:
        return f"log_det={self.log_det!r}, trace={self.trace!r}, gradient={self.gradient!r}"


def _scatter(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Returns the values at their rows among zeros."""
    return values.new_zeros(count, *values.shape[1:]).index_copy(0, rows, values)
