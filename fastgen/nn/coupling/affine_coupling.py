"""Coupling layers: one part of the input sets how the other is shifted and scaled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgen.nn.coupling.coupling import Coupling
from fastgen.ops.affine_coupling import affine_coupling


class AffineCoupling(Coupling):
    """A coupling layer that shifts and scales: ``forward(x, context=None)`` and ``inverse`` return (y, log_det [N]).

    x [N, C, ...] is split in the middle of its channels (the first part has the odd one), or by a mask. What is kept
    goes through ``net(kept)`` or ``net(kept, context)``, which returns twice the channels of what is transformed: with
    a mask the network sees x with zeros where the mask is 0, and returns 2 C channels.

    Args:
        net: the network of shifts and scales.
        parameterisation: "exp", "tanh" (RealNVP) or "sigmoid" (Glow); see ``fastgen.ops.affine_coupling``.
        scale: of "tanh", a number or a tensor [channels transformed], learned if it is an ``nn.Parameter``.
        mask: 1 where x is kept, broadcast to [C, ...]; None splits.
        swap: of the split form: keep the second part and transform the first.
        interleaved: the network's shifts and scales alternate in the channels.

    Raises:
        ValueError: a mask with ``swap``, or of other numbers than 0 and 1; an unknown parameterisation or shapes that
            do not fit, when it is called.

    References: Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", ICLR 2017; Kingma, Dhariwal, "Glow",
    NeurIPS 2018.

    Example:
        >>> layer = AffineCoupling(nn.Conv2d(2, 4, 3, padding=1), parameterisation="sigmoid")
        >>> y, log_det = layer(torch.randn(5, 4, 8, 8))
        >>> y.shape, log_det.shape
        (torch.Size([5, 4, 8, 8]), torch.Size([5]))
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        parameterisation: str = "exp",
        scale: Tensor | float = 1.0,
        mask: Tensor | None = None,
        swap: bool = False,
        interleaved: bool = False,
    ) -> None:
        super().__init__(net, mask, swap)
        self.parameterisation, self.interleaved = parameterisation, interleaved
        if isinstance(scale, nn.Parameter):
            self.scale = scale
        else:
            self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.get_default_dtype()))

    def _transform(self, x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return affine_coupling(
            x,
            parameters,
            parameterisation=self.parameterisation,
            inverse=inverse,
            scale=self.scale,
            mask=self.mask,
            interleaved=self.interleaved,
        )

    def extra_repr(self) -> str:
        return f"{self.parameterisation!r}, interleaved={self.interleaved}, swap={self.swap}"


class AdditiveCoupling(Coupling):
    """A coupling layer that shifts: ``y = x + net(kept)``, of log-determinant 0.

    Split, mask, context and results are those of ``AffineCoupling``; the network returns as many channels as are
    transformed (C with a mask).

    Reference: Dinh, Krueger, Bengio, "NICE: non-linear independent components estimation", 2014.

    Example:
        >>> layer = AdditiveCoupling(nn.Linear(1, 1))
        >>> layer(torch.randn(5, 2))[1]
        tensor([0., 0., 0., 0., 0.])
    """

    def __init__(self, net: nn.Module, *, mask: Tensor | None = None, swap: bool = False) -> None:
        super().__init__(net, mask, swap)

    def _transform(self, x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if parameters.shape != x.shape:
            raise ValueError(f"net must return shape {tuple(x.shape)}, got {tuple(parameters.shape)}")
        shift = parameters if self.mask is None else parameters.masked_fill(self.mask, 0)
        y = x - shift if inverse else x + shift
        return y, x.new_zeros(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))

    def extra_repr(self) -> str:
        return f"swap={self.swap}"
