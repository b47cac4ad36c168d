"""A scale and a bias for each channel, which the first batch sets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgen.nn.flow.flow_layer import FlowLayer
from fastgen.nn.normalization.channel_moments import channel_moments, constant_channels, moments_of_all_processes
from fastgen.nn.value_checks import check_finite
from fastgen.ops.precision import in_float32


class ActNorm(FlowLayer):
    """``y = exp(log_scale) (x + bias)`` for each channel: ``forward(x)`` and ``inverse(y)`` return (y, log_det [N]).

    The first batch that goes forward in training mode sets both parameters, so that every channel of it leaves with
    mean 0 and variance 1; until then they are 0. A channel that is constant in this batch gets scale 1, and a warning
    says so. That the parameters are set is the buffer ``initialized``, in the state dict. Under ``torch.distributed``
    the first batch is that of all processes, each of which must make the call. Call the layer once before it is
    compiled.

    x is float [N, C, ...]; half precision is computed in float32, log_det is float32 or float64.

    Args:
        channels: C.
        epsilon: added to the standard deviation of a channel.

    Raises:
        ValueError: an x of another number of channels; a first batch of fewer than 2 values of a channel or with values
            that are not finite; parameters that are not finite or whose exp is not (seen on the CPU, and by ``inverse``
            anywhere).

    Reference: Kingma, Dhariwal, "Glow: generative flow with invertible 1x1 convolutions", NeurIPS 2018.

    Example:
        >>> layer = ActNorm(3)
        >>> y, log_det = layer(7 + 2 * torch.randn(50, 3, 8, 8))
        >>> bool(layer.initialized), bool((y.mean((0, 2, 3)).abs() < 1e-4).all())
        (True, True)
    """

    set_by_first_batch = True

    def __init__(self, channels: int, *, epsilon: float = 1e-6) -> None:
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        super().__init__()
        self.channels, self.epsilon = channels, epsilon
        self.bias, self.log_scale = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialized", torch.tensor(False))
        self._seen_initialized = False  # True saves asking the device

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._check(x)
        self.initialize(x)
        return self._transform(x, inverse=False)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        self._check(y)
        return self._transform(y, inverse=True)

    def initialize(self, x: Tensor) -> None:
        """Sets the parameters by x, if the layer is training and no batch did so before."""
        if self.training and not self._seen_initialized:
            self._initialize(x)

    @torch.no_grad()
    def _initialize(self, x: Tensor) -> None:
        if not self.initialized:
            self._set_by(x)
            self.initialized.fill_(True)
        self._seen_initialized = True

    def _set_by(self, x: Tensor) -> None:
        (wide,) = in_float32(x)
        count, mean, variance = moments_of_all_processes(*channel_moments(wide))
        if count < 2:
            raise ValueError(
                f"x must have 2 values of a channel or more in the first batch of ActNorm, got shape {tuple(x.shape)}"
            )
        if not (torch.isfinite(mean) & torch.isfinite(variance)).all():
            raise ValueError(
                "x must have finite mean and variance in the first batch of ActNorm, got values that are not finite, "
                "or too large"
            )
        constant = constant_channels(mean, variance, "ActNorm")
        self.bias.copy_(-mean)
        self.log_scale.copy_(torch.where(constant, 0.0, -(variance.sqrt() + self.epsilon).log()))

    def check_parameters(self, inverse: bool) -> None:
        """ValueError where one cannot be used."""
        check_finite(self.bias, "bias", inverse)
        check_finite(self.log_scale, "log_scale", inverse, is_logarithm=True)

    def _check(self, x: Tensor) -> None:
        if x.dim() < 2 or x.shape[1] != self.channels:
            raise ValueError(f"x must have shape [N, {self.channels}, ...], got {tuple(x.shape)}")

    def _transform(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        self.check_parameters(inverse)
        wide, bias, log_scale = in_float32(x, self.bias, self.log_scale)
        shape = (-1, *[1] * (x.dim() - 2))
        bias = bias.reshape(shape)
        if inverse:
            y, log_det = wide * (-log_scale).exp().reshape(shape) - bias, -log_scale.sum()
        else:
            y, log_det = (wide + bias) * log_scale.exp().reshape(shape), log_scale.sum()
        return y.to(x.dtype), (log_det * x.shape[2:].numel()).repeat(x.shape[0])

    def _load_from_state_dict(self, *arguments, **others) -> None:
        super()._load_from_state_dict(*arguments, **others)
        self._seen_initialized = False

    def extra_repr(self) -> str:
        return f"{self.channels}"
