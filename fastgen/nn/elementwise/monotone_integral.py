"""The unconstrained monotonic network: the integral of a positive network, element by element."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.nn.elementwise.monotone_transform import MonotoneTransform
from fastgen.ops.arguments import check_integers
from fastgen.ops.autograd import push_forward
from fastgen.ops.precision import without_autocast


class MonotoneIntegral(MonotoneTransform):
    """The integral of a positive network on every element: ``forward(x, parameters)`` and ``inverse``, as
    ``MonotoneTransform`` has::

        y = c + ∫_0^x f(t, h) dt,   f(t, h) = m + 1 + elu(network(t, h))

    One network, the layer's own, serves all elements; the parameters of an element are c, then the embedding h, by
    which the network knows the element and what it is conditioned on. The integral is that of Clenshaw and Curtis with
    ``intervals`` + 1 nodes; the log-derivative is log f(x, h), without an integral.

    The gradient by x is f(x, h), as Leibniz' rule has it; that by h and by the weights is a quadrature of their own,
    and computes the network again at the nodes, so that nothing of what is computed there is kept for the backward.

    Args:
        embedding: width of h.
        hidden: widths of the network's hidden layers, one at least. Between them is elu: the integrand is smoother than
            with the relu of the authors' code, and so the quadrature is better.
        intervals: of the quadrature, which is exact for an integrand that is a polynomial of that degree.
        min_derivative: m, greater than 0. The paper has 0, with which the range of y may be bounded.

    Raises:
        ValueError: a number out of range; shapes that do not fit.

    Reference: Wehenkel, Louppe, "Unconstrained monotonic neural networks", NeurIPS 2019.

    Example:
        >>> transform = MonotoneIntegral(embedding=4, hidden=(16, 16))
        >>> x, parameters = torch.randn(5, 2), torch.randn(5, 2, transform.parameters_per_element)
        >>> y, log_det = transform(x, parameters)
        >>> torch.allclose(transform.inverse(y, parameters)[0], x, atol=1e-3)
        True
    """

    def __init__(
        self,
        embedding: int = 30,
        hidden: Sequence[int] = (50, 50, 50, 50),
        *,
        intervals: int = 50,
        min_derivative: float = 1e-3,
    ) -> None:
        check_integers(embedding=embedding, intervals=intervals)
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden must have the width of one layer at least, each 1 or more, got {tuple(hidden)}")
        if not min_derivative > 0:
            raise ValueError(f"min_derivative must be greater than 0, got {min_derivative}")
        super().__init__(1 + embedding)
        self.intervals, self.min_derivative = intervals, min_derivative
        self.of_embedding = nn.Linear(embedding, hidden[0])
        self.of_x = nn.Linear(1, hidden[0], bias=False)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise([*hidden, 1]))
        self._nodes, self._weights = (part.tolist() for part in clenshaw_curtis(intervals))

    def transform(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        with without_autocast(x):
            weights = [p.to(x.dtype) for layer in self.layers for p in (layer.weight, layer.bias)]
            of_embedding = [p.to(x.dtype) for p in (self.of_embedding.weight, self.of_embedding.bias)]
            weights = [self.of_x.weight.to(x.dtype).squeeze(-1), F.linear(parameters[..., 1:], *of_embedding), *weights]
            rule = x.new_tensor([self._nodes, self._weights])
            # torch.compile takes no Function with a jvp, and makes no number of a float where sizes are dynamic
            function = _Integral if torch.compiler.is_compiling() else _IntegralWithJvp
            integral = function.apply(x, x.new_tensor(self.min_derivative), rule, *weights)
            return parameters[..., 0] + integral, _integrand(x, self.min_derivative, *weights).log()

    def extra_repr(self) -> str:
        return f"intervals={self.intervals}, min_derivative={self.min_derivative}"


def clenshaw_curtis(intervals: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights, float64 [intervals + 1] each on the CPU, for an integral over [0, 1]: exact to that degree.

    Raises:
        ValueError: fewer than one interval.

    Example:
        >>> nodes, weights = clenshaw_curtis(2)
        >>> bool((weights * nodes**2).sum().isclose(torch.tensor(1 / 3, dtype=torch.float64)))
        True
    """
    check_integers(intervals=intervals)
    k = torch.arange(intervals + 1, dtype=torch.float64, device="cpu")
    j = torch.arange(1, intervals // 2 + 1, dtype=torch.float64, device="cpu")
    terms = torch.where(2 * j == intervals, 1.0, 2.0) / (4 * j**2 - 1)
    weights = (1 - torch.cos(2 * math.pi / intervals * k[:, None] * j) @ terms) / intervals
    weights[0], weights[-1] = weights[0] / 2, weights[-1] / 2
    return (1 - torch.cos(math.pi / intervals * k)) / 2, weights


def _integrand(t: Tensor, least: float | Tensor, of_t: Tensor, first: Tensor, *layers: Tensor) -> Tensor:
    """f at t [...], from the weight of t [H], what the embedding gives the first layer [..., H], and further layers."""
    hidden = t.unsqueeze(-1) * of_t + first
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        hidden = F.linear(F.elu(hidden), weight, bias)
    raw = hidden.squeeze(-1)
    return raw.clamp(max=0).exp() + raw.relu() + least


def _quadrature(x: Tensor, least: Tensor, rule: Tensor, *weights: Tensor) -> Tensor:
    nodes, of_nodes = (part.reshape(-1, *[1] * x.dim()) for part in rule)
    return x * (of_nodes * _integrand(nodes * x, least, *weights)).sum(0)


class _Integral(torch.autograd.Function):
    """``_quadrature`` with Leibniz' rule for x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, least, rule, *weights):
        return _quadrature(x, least, rule, *weights)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        x, least, rule, *weights = ctx.saved_tensors
        _, pull = torch.func.vjp(lambda *weights: _quadrature(x, least, rule, *weights), *weights)
        return gradient * _integrand(x, least, *weights), None, None, *pull(gradient)


class _IntegralWithJvp(_Integral):
    @staticmethod
    def jvp(ctx, of_x, of_least, of_rule, *of_weights):
        x, least, rule, *weights = ctx.saved_tensors
        tangents = [torch.zeros_like(w) if t is None else t for w, t in zip(weights, of_weights, strict=True)]
        pushed = push_forward(lambda *weights: _quadrature(x, least, rule, *weights), weights, tangents)
        return pushed if of_x is None else pushed + of_x * _integrand(x, least, *weights)
