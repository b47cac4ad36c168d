"""The Sylvester flows' layer."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.nn.elementwise.monotone_inverse import monotone_inverse
from fastgen.nn.posterior.amortized_flow import AmortizedFlow
from fastgen.nn.posterior.planar import tanh_log_slope, tanh_map
from fastgen.nn.value_checks import readable
from fastgen.ops.arguments import check_integers

KINDS = ("orthogonal", "householder", "triangular")
_ORTHOGONALIZATIONS = 40


class Sylvester(AmortizedFlow):
    """``y = x + Q R tanh(S Q^T x + b)``: ``forward(x)`` or ``forward(x, parameters)``, and ``inverse``, return (y or x
    [N, D], log_det [N]).

    Q [D, M] has orthonormal columns, R and S [M, M] are upper triangular with tanh on both diagonals, so that every
    ``R_mm S_mm`` exceeds -1, which makes the map one-to-one::

        log_det = sum_m log(1 + R_mm S_mm tanh'(S Q^T x + b)_m)

    By kind Q is

    - "orthogonal": made of a raw matrix, ``Q <- Q (1.5 I - 0.5 Q^T Q)`` until it is orthonormal to rounding; M is rank.
    - "householder": a product of reflections ``I - 2 v v^T / |v|^2``; M = D.
    - "triangular": a permutation, the identity or, with ``reverse``, the reversal; M = D.

    ``inverse`` solves the triangular system of Q^T x from the last unit to the first, each by its scalar root, to the
    precision of the dtype; both directions have gradients.

    Args:
        features: D.
        kind: of Q.
        rank: M of "orthogonal", from 1 to D; None is D.
        reflections: of "householder".
        reverse: of "triangular".
        amortized: every call gives the parameters [N, parameter_size]: the M x M matrix whose part above the diagonal
            is R's and below it S's transposed, its diagonal R's before the tanh; the diagonal of S before the tanh [M];
            b [M]; then Q's, D x M numbers or the reflections' v, D each.

    Raises:
        ValueError: an unknown kind; a rank or number of reflections out of range; what ``AmortizedFlow`` refuses; raw
            columns so nearly dependent that Q does not become orthonormal (seen on the CPU).

    Reference: van den Berg, Hasenclever, Tomczak, Welling, "Sylvester normalizing flows for variational inference", UAI
    2018.

    Example:
        >>> layer = Sylvester(4, rank=2, amortized=True)
        >>> x, parameters = torch.randn(5, 4), torch.randn(5, layer.parameter_size)
        >>> y, log_det = layer(x, parameters)
        >>> torch.allclose(layer.inverse(y, parameters)[0], x, atol=1e-4)
        True
    """

    def __init__(
        self,
        features: int,
        kind: str = "orthogonal",
        *,
        rank: int | None = None,
        reflections: int = 8,
        reverse: bool = False,
        amortized: bool = False,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
        if rank is not None and (kind != "orthogonal" or not 1 <= rank <= features):
            raise ValueError(
                f"rank must be from 1 to {features}, and None unless kind is 'orthogonal', got {rank} for {kind!r}"
            )
        check_integers(reflections=reflections)
        width = features if rank is None else rank
        of_q = {"orthogonal": width * features, "householder": reflections * features, "triangular": 0}[kind]
        super().__init__(features, width * (width + 2) + of_q, amortized)
        self.kind, self.rank, self.reverse = kind, width, reverse
        self.begin()

    def initial(self) -> Tensor:
        of_triangles = self.rank * (self.rank + 2)
        return torch.cat((0.1 * torch.randn(of_triangles), torch.randn(self.parameter_size - of_triangles)))

    def transform(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        r, s, b, of_q = self._matrices(parameters)
        inner = _product(s, self._rotated(x, of_q)) + b
        t = inner.tanh()
        slope = 1 + r.diagonal(dim1=1, dim2=2) * s.diagonal(dim1=1, dim2=2)
        return x + self._rotated_back(_product(r, t), of_q), tanh_log_slope(t, slope).sum(1)

    def inverse_transform(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        r, s, b, of_q = self._matrices(parameters)
        image = self._rotated(y, of_q)
        solved, activations, log_det = image[:, :0], image[:, :0], image.new_zeros(y.shape[0])
        for m in reversed(range(self.rank)):
            target = image[:, m] - (r[:, m, m + 1 :] * activations).sum(1)
            offset = b[:, m] + (s[:, m, m + 1 :] * solved).sum(1)
            scale, inner = r[:, m, m], s[:, m, m]
            own = partial(tanh_map, scale=scale, inner=inner, offset=offset, least_slope=1 + scale * inner)
            unit, log_slope = monotone_inverse(own, target, reach=scale.abs())
            solved = torch.cat((unit[:, None], solved), 1)
            activations = torch.cat(((inner * unit + offset).tanh()[:, None], activations), 1)
            log_det = log_det + log_slope
        return y + self._rotated_back(solved - image, of_q), log_det

    def _matrices(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """R and S [N or 1, M, M], b [N or 1, M], and Q's own: matrix, reflections or nothing."""
        m = self.rank
        both, diagonal, b, of_q = parameters.split((m * m, m, m, self.parameter_size - m * (m + 2)), 1)
        both = both.unflatten(1, (m, m))
        r = both.triu(1) + both.diagonal(dim1=1, dim2=2).tanh().diag_embed()
        s = both.tril(-1).mT + diagonal.tanh().diag_embed()
        of_q = of_q.unflatten(1, (-1, m if self.kind == "orthogonal" else self.features)) if of_q.shape[1] else of_q
        return r, s, b, orthonormal(of_q) if self.kind == "orthogonal" else of_q

    def _rotated(self, x: Tensor, of_q: Tensor) -> Tensor:
        """Q^T x [N, M]."""
        if self.kind == "orthogonal":
            return _product(of_q.mT, x)
        return _reflected(x, of_q.unbind(1)) if self.kind == "householder" else self._permuted(x)

    def _rotated_back(self, v: Tensor, of_q: Tensor) -> Tensor:
        """Q v [N, D]."""
        if self.kind == "orthogonal":
            return _product(of_q, v)
        return _reflected(v, of_q.unbind(1)[::-1]) if self.kind == "householder" else self._permuted(v)

    def _permuted(self, x: Tensor) -> Tensor:
        return x.flip(1) if self.reverse else x

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kind={self.kind!r}, rank={self.rank}"


def orthonormal(raw: Tensor) -> Tensor:
    """The orthonormal columns that an iteration makes of the columns of raw matrices [N, D, M], M at most D.

    Divided by its Frobenius norm a matrix has singular values of 1 at most; ``Q (1.5 I - 0.5 Q^T Q)`` brings each
    nearer to 1, quadratically at the end. The iteration stops when rounding is all that is left (as far as values may
    be looked at), after 40 steps at most.

    Raises:
        ValueError: the columns are so nearly dependent that 40 steps are not enough (seen on the CPU).

    Example:
        >>> q = orthonormal(torch.randn(2, 5, 3))
        >>> torch.allclose(q.mT @ q, torch.eye(3), atol=1e-5)
        True
    """
    q = raw / torch.linalg.matrix_norm(raw, keepdim=True)
    identity = torch.eye(raw.shape[2], dtype=raw.dtype, device=raw.device)
    nearly = torch.finfo(raw.dtype).eps ** 0.5
    looked = readable(raw, inverse=False)
    for _ in range(_ORTHOGONALIZATIONS):
        gram = q.mT @ q
        q = 1.5 * q - 0.5 * q @ gram
        if looked and (done := ((gram - identity).abs() < nearly).flatten(1).all(1)).all():  # so that now q is exact
            return q
    if looked:
        raise ValueError(
            f"raw must have independent columns, got {int((~done).sum())} of {len(raw)} matrices with nearly dependent "
            "ones"
        )
    return q


def _reflected(x: Tensor, vectors: tuple[Tensor, ...]) -> Tensor:
    """x [N, D] after the reflections of vectors [N or 1, D], in turn."""
    for vector in vectors:
        unit = F.normalize(vector, dim=1)
        x = x - 2 * (unit * x).sum(1, keepdim=True) * unit
    return x


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    """[N or 1, A, B] and [N, B] to [N, A]."""
    return x @ matrix[0].mT if matrix.shape[0] == 1 else (matrix @ x[:, :, None]).squeeze(2)
