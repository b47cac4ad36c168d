"""Coupling layers: one part of the input sets how the other is shifted and scaled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgen.ops.affine_coupling import affine_coupling


class _Coupling(nn.Module):
    """What both couplings share: which part is kept, and what the network sees of it."""

    def __init__(self, net: nn.Module, mask: Tensor | None, swap: bool) -> None:
        super().__init__()
        if mask is not None and swap:
            raise ValueError("swap=True is of the split form; with a mask give 1 - mask")
        self.net, self.swap = net, swap
        self.register_buffer("mask", None if mask is None else mask != 0)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x to (y, log_det [N])."""
        return self._couple(x, context, False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y to (x, log_det [N] of that)."""
        return self._couple(y, context, True)

    def _couple(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if x.dim() < 2 or (self.mask is None and x.shape[1] < 2):
            raise ValueError(f"x has shape {tuple(x.shape)}; it must be [N, C, ...], to be split with C at least 2")
        if self.mask is not None:
            return self._transform(x, self._outputs_of(x.masked_fill(~self.mask, 0), context), inverse)
        first, second = x.tensor_split(2, 1)
        kept, changed = (second, first) if self.swap else (first, second)
        changed, log_det = self._transform(changed, self._outputs_of(kept, context), inverse)
        return torch.cat((changed, kept) if self.swap else (kept, changed), 1), log_det

    def _outputs_of(self, kept: Tensor, context: Tensor | None) -> Tensor:
        return self.net(kept) if context is None else self.net(kept, context)

    def _transform(self, x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class AffineCoupling(_Coupling):
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
        ValueError: a mask with ``swap``; an unknown parameterisation or shapes that do not fit, when it is called.

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


class AdditiveCoupling(_Coupling):
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
            raise ValueError(f"net returns {tuple(parameters.shape)}; it must return {tuple(x.shape)}")
        shift = parameters if self.mask is None else parameters.masked_fill(self.mask, 0)
        y = x - shift if inverse else x + shift
        return y, x.new_zeros(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))

    def extra_repr(self) -> str:
        return f"swap={self.swap}"
