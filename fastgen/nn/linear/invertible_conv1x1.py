"""Glow's invertible 1x1 convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgen.nn.flow.flow_layer import FlowLayer
from fastgen.nn.normalization.act_norm import ActNorm
from fastgen.nn.value_checks import check_finite, readable
from fastgen.ops.lu_conv1x1 import lu_conv1x1, product
from fastgen.ops.precision import in_float32, without_autocast


class InvertibleConv1x1(FlowLayer):
    """A learned invertible matrix that mixes the channels: ``forward(x)``, ``inverse(y)`` return (y, log_det [N]).

    The matrix begins as a random rotation. By its LU factors the log-determinant costs a sum and the inverse two
    triangular solves; a plain weight is factored anew by every call. With ``act_norm`` the layer has an ``ActNorm``
    before the matrix, folded into the matrix product.

    x is float [N, C, ...] or [N, C]; half precision is computed in float32, log_det is float32 or float64.

    Args:
        channels: C.
        lu: learn ``lower``, ``upper`` and ``log_s``, with the permutation and the signs fixed (buffers); False learns
            ``weight``.
        act_norm: normalise the channels first.

    Raises:
        ValueError: an x of another number of channels; parameters that are not finite, or a singular matrix (seen on
            the CPU, and by ``inverse`` anywhere).

    Reference: Kingma, Dhariwal, "Glow: generative flow with invertible 1x1 convolutions", NeurIPS 2018.

    Example:
        >>> layer = InvertibleConv1x1(4, act_norm=True)
        >>> x = torch.randn(5, 4, 8, 8)
        >>> y, log_det = layer(x)
        >>> torch.allclose(layer.inverse(y)[0], x, atol=1e-4)
        True
    """

    def __init__(self, channels: int, *, lu: bool = True, act_norm: bool = False) -> None:
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        super().__init__()
        self.channels, self.lu = channels, lu
        self.act_norm = ActNorm(channels) if act_norm else None
        rotation = random_rotation(channels)
        if not lu:
            self.weight = nn.Parameter(rotation)
            return
        permutation, lower, upper, log_s, sign = _factors_of(rotation)
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", sign)
        self.lower, self.upper = nn.Parameter(lower.tril(-1)), nn.Parameter(upper.triu(1))
        self.log_s = nn.Parameter(log_s)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._check(x, inverse=False)
        if self.act_norm is not None:
            self.act_norm.initialize(x)
        return self._with_factors(x, inverse=False) if self.lu else self._with_weight(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        self._check(y, inverse=True)
        return self._with_factors(y, inverse=True)

    def _check(self, x: Tensor, inverse: bool) -> None:
        if x.dim() < 2 or x.shape[1] != self.channels:
            raise ValueError(f"x must have shape [N, {self.channels}, ...], got {tuple(x.shape)}")
        if self.act_norm is not None:
            self.act_norm.check_parameters(inverse)
        for name in ("lower", "upper", "log_s") if self.lu else ("weight",):
            check_finite(getattr(self, name), name, inverse, is_logarithm=name == "log_s")

    def _norm(self) -> tuple[Tensor | None, Tensor | None]:
        return (None, None) if self.act_norm is None else (self.act_norm.bias, self.act_norm.log_scale)

    def _with_factors(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if self.lu:
            factors = self.permutation, self.lower, self.upper, self.log_s, self.sign
        else:
            factors = _factors_of(in_float32(self.weight)[0])
            self._refuse_singular(factors[3], inverse)
        return lu_conv1x1(x, *factors, *self._norm(), inverse=inverse)

    def _with_weight(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bias, log_scale = self._norm()
        wide, weight = in_float32(x, self.weight)
        bias = None if bias is None else bias.to(weight.dtype)
        log_det = torch.linalg.slogdet(weight)[1]
        self._refuse_singular(log_det, inverse=False)
        if log_scale is not None:
            log_scale = log_scale.to(weight.dtype)
            weight, log_det = weight * log_scale.exp(), log_det + log_scale.sum()
        with without_autocast(x):
            y = product(wide, weight, bias)
        return y.to(x.dtype), (log_det * x.shape[2:].numel()).repeat(x.shape[0])

    def _refuse_singular(self, logarithms: Tensor, inverse: bool) -> None:
        if readable(logarithms, inverse) and not torch.isfinite(logarithms).all():
            raise ValueError("weight must have an inverse, got a singular matrix")

    def extra_repr(self) -> str:
        return f"{self.channels}, lu={self.lu}"


def random_rotation(channels: int) -> Tensor:
    """Returns an orthogonal [C, C] of determinant 1, uniformly distributed among these."""
    basis, triangle = torch.linalg.qr(torch.randn(channels, channels))
    rotation = (basis * triangle.diag().sign()).contiguous()
    rotation[:, 0] *= torch.linalg.det(rotation).sign()
    return rotation


def _factors_of(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns a matrix as ``lu_conv1x1`` takes it: permutation, lower, upper, log_s, sign."""
    permutation, lower, upper = torch.linalg.lu(weight)
    diagonal = upper.diagonal()
    return permutation.argmax(1), lower, upper, diagonal.abs().log(), diagonal.detach().sign()
