"""Batch normalisation as a layer of a flow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgen.nn.flow.flow_layer import FlowLayer
from fastgen.nn.normalization.channel_moments import channel_moments, moments_of_all_processes
from fastgen.nn.recomputation import is_recomputation
from fastgen.nn.value_checks import check_finite
from fastgen.ops.precision import in_float32


class FlowBatchNorm(FlowLayer):
    """``y = (x - mean) / sqrt(variance + epsilon)`` for each channel: ``forward(x)``, ``inverse(y)`` return (y, log_det
    [N]).

    In training mode ``forward`` takes mean and variance of its batch, which count as constants in the log-determinant,
    and adds them to running averages: of all batches so far until ``momentum`` weighs the newest more. In eval mode
    ``forward``, and ``inverse`` in either mode, take these averages (mean 0 and variance 1 before the first batch).
    Under ``torch.distributed`` a process normalises by its own batch, and the averages are those of all processes, each
    of which must make the call. A forward that checkpointing computes again adds nothing to them.

    x is float [N, C, ...]; half precision is computed in float32, log_det is float32 or float64.

    Args:
        channels: C.
        affine: learn ``exp(log_scale) y + bias`` after it, as MAF does.
        epsilon: added to the variance.
        momentum: weight of a new batch in the running averages.

    Raises:
        ValueError: an x of another number of channels; in training mode fewer than 2 values of a channel; averages that
            are not finite, as of a batch that was not, or beyond half precision (seen on the CPU, and by ``inverse``
            anywhere).

    References: Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", ICLR 2017, appendix E; Papamakarios,
    Pavlakou, Murray, "Masked autoregressive flow for density estimation", NeurIPS 2017, appendix B.

    Example:
        >>> layer = FlowBatchNorm(3)
        >>> y, log_det = layer(7 + 2 * torch.randn(50, 3, 8, 8))
        >>> back, _ = layer.inverse(y)
        >>> log_det.shape, bool((y.mean((0, 2, 3)).abs() < 1e-4).all())
        (torch.Size([50]), True)
    """

    normalizes_by_batch = True

    def __init__(self, channels: int, *, affine: bool = False, epsilon: float = 1e-4, momentum: float = 0.1) -> None:
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must be greater than 0 and at most 1, got {momentum}")
        super().__init__()
        self.channels, self.epsilon, self.momentum = channels, epsilon, momentum
        self.log_scale, self.bias = (nn.Parameter(torch.zeros(channels)) if affine else None for _ in range(2))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._check(x)
        if not self.training:
            return self._by_averages(x, inverse=False)
        if x.shape[0] * x.shape[2:].numel() < 2:
            raise ValueError(f"x must have 2 values of a channel or more in training mode, got shape {tuple(x.shape)}")
        (wide,) = in_float32(x)
        count, mean, variance = channel_moments(wide)
        if not is_recomputation():
            self._average(*moments_of_all_processes(count, mean.detach(), variance.detach())[1:])
        return self._transform(x, mean, variance, inverse=False)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        self._check(y)
        return self._by_averages(y, inverse=True)

    def batch_statistics(self, x: Tensor) -> dict[str, Tensor]:
        """Returns mean and variance of x, which ``forward(x)`` takes in training mode."""
        _, mean, variance = channel_moments(*in_float32(x))
        return {"mean": mean, "variance": variance}

    def _check(self, x: Tensor) -> None:
        if x.dim() < 2 or x.shape[1] != self.channels:
            raise ValueError(f"x must have shape [N, {self.channels}, ...], got {tuple(x.shape)}")

    def _average(self, mean: Tensor, variance: Tensor) -> None:
        self.batches.add_(1)
        weight = (1 / self.batches).clamp(min=self.momentum).to(self.mean.dtype)
        self.mean.lerp_(mean.to(self.mean.dtype), weight)
        self.variance.lerp_(variance.to(self.mean.dtype), weight)

    def _by_averages(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        check_finite(self.mean, "mean", inverse)
        check_finite(self.variance, "variance", inverse)
        return self._transform(x, self.mean, self.variance, inverse)

    def _transform(self, x: Tensor, mean: Tensor, variance: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        wide, mean, variance = in_float32(x, mean, variance)
        bias = torch.zeros_like(mean) if self.bias is None else self.bias.to(mean.dtype)
        log_scale = -0.5 * (variance + self.epsilon).log()
        if self.log_scale is not None:
            log_scale = log_scale + self.log_scale
        mean, bias, factor = (v.reshape(-1, *[1] * (x.dim() - 2)) for v in (mean, bias, log_scale.exp()))
        y = (wide - bias) / factor + mean if inverse else (wide - mean) * factor + bias
        log_det = log_scale.sum() * x.shape[2:].numel()
        return y.to(x.dtype), (-log_det if inverse else log_det).repeat(x.shape[0])

    def extra_repr(self) -> str:
        return f"{self.channels}, affine={self.bias is not None}"
