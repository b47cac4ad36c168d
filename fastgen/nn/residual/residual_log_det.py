"""The log-determinant of ``x + g(x)``: exact, or by the power series of g's Jacobian, whole or cut off at random."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor

from fastgen.ops.field import Field, is_transformed
from fastgen.ops.hutchinson_trace import Products
from fastgen.ops.philox_uniform import philox_uniform

DISTRIBUTIONS = {"geometric": (0.05, 1.0), "poisson": (0.0, 100.0)}
"""Distributions of the number of random terms, each with the open interval of its parameter."""

_LIFT = 2.0**64
"""Factor of v: the later products are too small for normal numbers otherwise, and many times slower."""

_FIRST, _NOTHING = 8, 1e-20
"""Products before the first look at whether they still count, each time three times as many; elements that do not."""

_LEAST, _MOST = 2.0**-53, 1024
"""Probabilities below the first are not resolved by the uniform noise; of fewer terms than the second they are."""


class _ValueOf(torch.autograd.Function):
    """The second argument's value with the first one's gradient, which is not to be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(differentiated: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def jvp(ctx, differentiated: Tensor | None, value: Tensor | None) -> Tensor | None:
        return None if differentiated is None else differentiated.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
            raise NotImplementedError(
                "the log-determinant is differentiated with create_graph, but the gradient of gradient='neumann' has "
                "none of its own; use gradient='autograd'"
            )
        return gradient, None


def jacobian(g: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """g(x), and its Jacobian [N, D, D] by D products, with a gradient."""
    numbers = math.prod(x.shape[1:])
    units = torch.eye(numbers, dtype=x.dtype, device=x.device).reshape(numbers, 1, *x.shape[1:])
    if isinstance(g, Field) and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
        y, (rows,) = g.power_products(x, units.expand(numbers, *x.shape), 1)
    else:
        products = Products(g, x)
        y, rows = products.y, products.products(x, units)
    return y, rows.flatten(2).transpose(0, 1)


def exact(g: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """g(x) and log|det(I + J)| [N]."""
    y, matrix = jacobian(g, x)
    return y, torch.linalg.slogdet(matrix + torch.eye(matrix.shape[1], dtype=x.dtype, device=x.device))[1]


def series_of_traces(g: Callable[[Tensor], Tensor], x: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """g(x) and ``sum_k (-1)^(k+1) c_k tr(J^k) / k`` [N], the traces exact."""
    y, matrix = jacobian(g, x)
    power, total = matrix, x.new_zeros(x.shape[0])
    for k, weight in enumerate(_alternating(coefficients), 1):
        power = power @ matrix if k > 1 else power
        total = total + weight / k * power.diagonal(dim1=1, dim2=2).sum(1)
    return y, total


def series(g: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """g(x) and ``sum_k (-1)^(k+1) c_k v^T J^k v / k`` [N], differentiated as it stands: memory grows with the terms."""
    products = Products(g, x)
    carried, total = v, x.new_zeros(x.shape[0])
    for k, weight in enumerate(_alternating(coefficients), 1):
        carried = products.pull(carried)
        total = total + weight / k * (carried * v).flatten(1).sum(1)
    return products.y, total


def neumann_series(g: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """The value of ``series``, with the gradient of ``w^T J v`` at the constant w: memory is that of one product.

    The derivative of tr(J^k) / k is tr(J^(k-1) dJ), so with ``w^T = sum_k (-1)^(k+1) c_k v^T J^(k-1)`` the mean over v
    of ``w^T dJ v`` is the derivative of the series. A field that can find that gradient alone is asked for v^T J^n v,
    too. Others have to form the scalar w^T J v, which is not the series, as that divides by k; but it holds v^T J^n v,
    the one term that the n - 1 products in w lack.
    """
    field = g if isinstance(g, Field) and not torch.compiler.is_compiling() else Products(g, x)
    alone = isinstance(field, Field) and field.has_gradient_alone(x)
    y, terms = _products_that_count(field, x, v * _LIFT, len(coefficients) - (not alone))
    count = len(terms) + (not alone)
    lifted = _alternating(coefficients[:count]) / _LIFT
    earlier = terms[: count - 1]
    w = (v * coefficients[0] + torch.tensordot(lifted[1:], earlier, 1)).detach()
    orders = torch.arange(1, count + 1, device=x.device, dtype=x.dtype)
    numbers = (terms * v).flatten(2).sum(2)
    if alone:
        value = (lifted / orders) @ numbers
        y, total = field.contract(x, w[None], v[None], known=(y, value))
    else:
        y, total = field.contract(x, w[None], v[None])
        value = total.detach() / count + (lifted / orders - lifted / count)[:-1] @ numbers
    if torch.compiler.is_compiling():
        return y, total - total.detach() + value.detach()
    return y, _ValueOf.apply(total, value)


def _products_that_count(field: Field | Products, x: Tensor, v: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """f(x), and products with the powers of J, some at a time, until all are done or the rest are 0 to rounding."""
    y, terms = field.power_products(x, v, min(count, _FIRST))
    looks = x.numel() and not (is_transformed() or x.is_meta)
    while len(terms) < count and not (looks and terms[-1].abs().amax() < _NOTHING * _LIFT):
        more = field.power_products(x, terms[-1], min(count - len(terms), 2 * len(terms)))[1]
        terms = torch.cat((terms, more))
    return y, terms


def survival(distribution: str, parameter: float) -> tuple[float, ...]:
    """P(N >= k) for k = 1, 2, ..., as far as the noise can draw it.

    "geometric" has (1 - p)^(k-1), p the parameter; "poisson" has it as its rate.
    """
    if distribution == "geometric":
        return tuple((1 - parameter) ** k for k in range(_MOST) if (1 - parameter) ** k > _LEAST)
    masses = [math.exp(k * math.log(parameter) - parameter - math.lgamma(k + 1)) for k in range(1, _MOST)]
    return tuple(mass for mass in reversed(list(accumulate(reversed(masses)))) if mass > _LEAST)


def roulette(reached: tuple[float, ...], exact_terms: int, seed: int, device: torch.device) -> Tensor:
    """Coefficients c [n], float64, of a series cut off after n = ``exact_terms`` + N terms, N drawn from the seed.

    ``c_k = 1 / P(N >= k - exact_terms)``, 1 for the exact terms, makes the mean of the cut series the whole one.
    Under ``torch.compile``, and on the meta device, c is of a fixed length, 0 after the n-th.

    Args:
        reached: of ``survival``.
    """
    table = torch.tensor(reached, dtype=torch.float64, device=device)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    drawn = philox_uniform(seed, zero, zero, 1, 0)[0] < table
    random = torch.where(drawn, 1 / table, 0.0)
    if not (torch.compiler.is_compiling() or drawn.is_meta):
        random = random[: int(drawn.sum())]
    return torch.cat((random.new_ones(exact_terms), random))


def probe(x: Tensor, seed: int) -> Tensor:
    """Random signs like x, each of the seed, the sample's number and its place alone."""
    samples = torch.arange(x.shape[0], device=x.device)
    places = torch.arange(math.prod(x.shape[1:]), device=x.device)
    return (philox_uniform(seed, samples, places, 0, 0) - 0.5).sign().to(x.dtype).reshape(x.shape)


def _alternating(coefficients: Tensor) -> Tensor:
    signs = torch.ones_like(coefficients)
    signs[1::2] = -1
    return coefficients * signs
