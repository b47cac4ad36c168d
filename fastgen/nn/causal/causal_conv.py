"""Causal 1-d convolution and the gated residual block built on it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.ops.arguments import check_integers
from fastgen.ops.causal_conv1d import causal_conv1d


class CausalConv1d(nn.Conv1d):
    """``y[t] = bias + sum_k weight[k] x[t - (kernel_size - 1 - k) dilation]``, with zeros before the first element.

    Input [N, C, T], output [N, out_channels, T], of the input's dtype. ``step`` computes one element at a time.

    Raises:
        ValueError: ``kernel_size`` or ``dilation`` is less than 1, or no integer.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        check_integers(kernel_size=kernel_size, dilation=dilation)
        super().__init__(in_channels, out_channels, kernel_size, dilation=dilation, groups=groups, bias=bias)
        self.history = (kernel_size - 1) * dilation

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.history, 0)))

    def initial_state(self, n: int) -> Tensor:
        """The state before the first element: zeros [n, in_channels, (kernel_size - 1) dilation]."""
        return self.weight.new_zeros(n, self.in_channels, self.history)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The output [N, out_channels] for the next element x [N, in_channels], and the next state."""
        window = torch.cat([state, x[:, :, None]], dim=2)
        return super().forward(window)[:, :, 0], window[:, :, 1:]


class GatedResidualBlock1d(nn.Module):
    """The block of WaveNet (van den Oord et al. 2016).

    ``z = tanh(W_f * x + c_f) sigmoid(W_g * x + c_g)``, skip output ``W_s z``, residual output ``x + W_r z``; the tanh
    half comes first in the ``gate_channels`` channels. The conditions c are a linear map of a global vector [N,
    global_channels] and a 1x1 convolution of local features [N, local_channels, T]. Input [N, residual_channels, T];
    returns (residual, skip) of lengths T. With ``last=True`` there is no residual output (nothing would read it) and
    the input is returned in its place.
    """

    def __init__(
        self,
        residual_channels: int,
        gate_channels: int,
        skip_channels: int,
        kernel_size: int = 2,
        dilation: int = 1,
        *,
        global_channels: int = 0,
        local_channels: int = 0,
        last: bool = False,
    ) -> None:
        if gate_channels % 2:
            raise ValueError(f"gate_channels must be even (half for tanh, half for the sigmoid), got {gate_channels}")
        super().__init__()
        self.conv = CausalConv1d(residual_channels, gate_channels, kernel_size, dilation=dilation)
        self.global_condition = nn.Linear(global_channels, gate_channels, bias=False) if global_channels else None
        self.local_condition = nn.Conv1d(local_channels, gate_channels, 1, bias=False) if local_channels else None
        self.skip = nn.Conv1d(gate_channels // 2, skip_channels, 1)
        self.residual = None if last else nn.Conv1d(gate_channels // 2, residual_channels, 1)

    def forward(
        self, x: Tensor, global_condition: Tensor | None = None, local_condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        condition = self._condition(global_condition, local_condition)
        layers = [layer for layer in (self.conv, self.skip, self.residual) if layer is not None]
        hooked = any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)  # which a layer's call runs
        if hooked or x.device.type != "cpu" or torch.compiler.is_exporting() or torch.is_autocast_enabled("cpu"):
            return self._finish(x, _gated(self.conv(x), condition))
        residual, skip, _ = causal_conv1d(
            x,
            self.conv.weight,
            self.conv.bias,
            dilation=self.conv.dilation[0],
            gate="tanh_sigmoid",
            condition=condition,
            residual_weight=None if self.residual is None else self.residual.weight[:, :, 0],
            residual_bias=None if self.residual is None else self.residual.bias,
            skip_weight=self.skip.weight[:, :, 0],
            skip_bias=self.skip.bias,
        )
        return residual, skip

    def initial_state(self, n: int) -> Tensor:
        return self.conv.initial_state(n)

    def step(
        self, x: Tensor, state: Tensor, global_condition: Tensor | None = None, local_condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(residual, skip, state) for the next x [N, residual_channels]; ``local_condition`` is [N, local_channels]."""
        gates, state = self.conv.step(x, state)
        local = None if local_condition is None else local_condition[:, :, None]
        z = _gated(gates[:, :, None], self._condition(global_condition, local))
        residual, skip = self._finish(x[:, :, None], z)
        return residual[:, :, 0], skip[:, :, 0], state

    def _condition(self, global_: Tensor | None, local: Tensor | None) -> Tensor | None:
        """[N, gate_channels, T], or 1 in place of T; None where there is none."""
        parts = [] if self.global_condition is None else [self.global_condition(global_)[:, :, None]]
        if self.local_condition is not None:
            parts.append(self.local_condition(local))
        return sum(parts[1:], parts[0]) if parts else None

    def _finish(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return x if self.residual is None else x + self.residual(z), self.skip(z)


def _gated(sums: Tensor, condition: Tensor | None) -> Tensor:
    signal, gate = (sums if condition is None else sums + condition).chunk(2, dim=1)
    return torch.tanh(signal) * torch.sigmoid(gate)
