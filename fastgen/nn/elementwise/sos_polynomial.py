"""The increasing polynomials of sum-of-squares flows, element by element."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastgen.nn.elementwise.monotone_transform import MonotoneTransform
from fastgen.ops.arguments import check_integers


class SOSPolynomial(MonotoneTransform):
    """The integral of a sum of squared polynomials on every element: ``forward(x, parameters)`` and ``inverse``, as
    ``MonotoneTransform`` has::

        y = c + ∫_0^x f(t) dt,   f(t) = m + (1 - m) / K sum_k (1 + sum_l a_kl t^l)^2,   l = 0, ..., r

    The parameters of an element are c, then a_10, ..., a_Kr; all 0 they make the identity. y is a polynomial of degree
    2 r + 1 in x. The integral is that of Gauss and Legendre with r + 1 nodes, which is exact; all its terms are
    positive, so nothing cancels, as it would among the polynomial's own coefficients.

    Args:
        polynomials: K.
        degree: r.
        min_derivative: m, less than 1. The paper has 0, where the derivative may vanish.

    Raises:
        ValueError: a number out of range; shapes that do not fit.

    Reference: Jaini, Selby, Yu, "Sum-of-squares polynomial flow", ICML 2019.

    Example:
        >>> transform = SOSPolynomial(polynomials=3, degree=2)
        >>> x, parameters = torch.randn(5, 2), torch.randn(5, 2, transform.parameters_per_element)
        >>> y, log_det = transform(x, parameters)
        >>> torch.allclose(transform.inverse(y, parameters)[0], x, atol=1e-3)
        True
    """

    def __init__(self, polynomials: int = 5, degree: int = 4, *, min_derivative: float = 1e-3) -> None:
        check_integers(polynomials=polynomials, degree=degree)
        if not 0 < min_derivative < 1:
            raise ValueError(f"min_derivative must be greater than 0 and less than 1, got {min_derivative}")
        super().__init__(1 + polynomials * (degree + 1))
        self.polynomials, self.degree, self.min_derivative = polynomials, degree, min_derivative
        nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(degree + 1))
        self._nodes, self._weights = ((nodes + 1) / 2).tolist(), (weights / 2).tolist()

    def transform(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        offset, coefficients = parameters[..., 0], parameters[..., 1:].unflatten(-1, (self.polynomials, -1))
        nodes, weights = x.new_tensor(self._nodes), x.new_tensor(self._weights)
        at_nodes = self._polynomials_at(x.unsqueeze(-1) * nodes, coefficients)
        integral = ((self.min_derivative + (1 - self.min_derivative) * at_nodes.square().mean(-2)) * weights).sum(-1)
        return offset + x * integral, self._log_derivative(x, coefficients)

    def _polynomials_at(self, t: Tensor, coefficients: Tensor) -> Tensor:
        """Values [..., K, Q] at t [..., Q]."""
        t = t.unsqueeze(-2)
        *lower, value = coefficients.unsqueeze(-2).unbind(-1)
        for coefficient in reversed(lower):
            value = value * t + coefficient
        return 1 + value

    def _log_derivative(self, x: Tensor, coefficients: Tensor) -> Tensor:
        values = self._polynomials_at(x.unsqueeze(-1), coefficients).squeeze(-1)
        scale = values.detach().abs().amax(-1, keepdim=True).clamp(min=1)  # their squares may be beyond float32
        squares = (values / scale).square().mean(-1)
        scale = scale.squeeze(-1)
        least = self.min_derivative / scale / scale
        return 2 * scale.log() + (least + (1 - self.min_derivative) * squares).log()

    def extra_repr(self) -> str:
        return f"polynomials={self.polynomials}, degree={self.degree}, min_derivative={self.min_derivative}"
