"""The spline coupling layer of neural spline flows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgen.nn.coupling.coupling import Coupling
from fastgen.nn.elementwise.spline_transform import SplineTransform


class SplineCoupling(Coupling):
    """A coupling layer of monotone splines: ``forward(x, context=None)`` and ``inverse`` return (y, log_det [N]).

    Split, mask and context are those of ``AffineCoupling``. The network returns P numbers for each element that is
    transformed, channel by channel: [N, C P, ...] with those of the first channel first, P being
    ``spline.parameters_per_element``.

    Args:
        net: the network of parameters.
        spline: the splines.
        unconditional: of the split form: a flow layer on the kept part, such as a ``RationalQuadraticSpline``, which
            the network does not see the effect of.
        mask: 1 where x is kept, broadcast to [C, ...]; None splits.
        swap: of the split form: keep the second part and transform the first.

    Raises:
        ValueError: a mask with ``swap`` or ``unconditional``, or of other numbers than 0 and 1; shapes that do not fit,
            or a value outside the interval of a spline without tails, when it is called.

    Reference: Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", NeurIPS 2019.

    Example:
        >>> spline = SplineTransform(bins=8)
        >>> layer = SplineCoupling(nn.Conv2d(2, 2 * spline.parameters_per_element, 3, padding=1), spline)
        >>> y, log_det = layer(torch.randn(5, 4, 8, 8))
        >>> y.shape, log_det.shape
        (torch.Size([5, 4, 8, 8]), torch.Size([5]))
    """

    def __init__(
        self,
        net: nn.Module,
        spline: SplineTransform,
        *,
        unconditional: nn.Module | None = None,
        mask: Tensor | None = None,
        swap: bool = False,
    ) -> None:
        super().__init__(net, mask, swap)
        if mask is not None and unconditional is not None:
            raise ValueError(f"unconditional must be None with a mask, got a {type(unconditional).__name__}")
        self.spline, self.unconditional = spline, unconditional

    def _couple(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if self.unconditional is None:
            return super()._couple(x, context, inverse)
        if inverse:
            x, first = self._transform_kept(x, inverse)
            y, second = super()._couple(x, context, inverse)
        else:
            x, first = super()._couple(x, context, inverse)
            y, second = self._transform_kept(x, inverse)
        return y, first + second

    def _transform_kept(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        first, second = x.tensor_split(2, 1)
        transform = self.unconditional.inverse if inverse else self.unconditional
        kept, log_det = transform(second if self.swap else first)
        return torch.cat((first, kept) if self.swap else (kept, second), 1), log_det

    def _transform(self, x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        size, channels = self.spline.parameters_per_element, x.shape[1]
        wanted = (x.shape[0], channels * size, *x.shape[2:])
        if parameters.shape != wanted:
            raise ValueError(f"net must return shape {wanted}, got {tuple(parameters.shape)}")
        parameters = parameters.unflatten(1, (channels, size)).movedim(2, -1)
        if self.mask is None:
            y, log_slope = self.spline.elementwise(x, parameters, inverse=inverse)
        else:
            inside = x.masked_fill(self.mask, self.spline.inside(inverse))
            y, log_slope = self.spline.elementwise(inside, parameters, inverse=inverse)
            y, log_slope = torch.where(self.mask, x, y), log_slope.masked_fill(self.mask, 0)
        return y, log_slope.flatten(1).sum(1)

    def extra_repr(self) -> str:
        return f"swap={self.swap}"
