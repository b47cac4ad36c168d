"""The coupling layer of Flow++: a mixture of logistics' cdf, its logit, and an affine map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgen.nn.coupling.coupling import Coupling
from fastgen.ops.affine_coupling import affine_coupling
from fastgen.ops.arguments import check_integers
from fastgen.ops.logistic_mixture_cdf import logistic_mixture_cdf


class LogisticMixtureCoupling(Coupling):
    """A coupling layer of Flow++: ``forward(x, context=None)`` and ``inverse`` return (y, log_det [N]).

    What is transformed goes through the cdf of a mixture of M logistics and its logit, then through an affine map::

        y = logit(F(x)) exp(scale tanh(a)) + b

    Split, mask and context are those of ``AffineCoupling``. The network returns ``2 + 3 M`` numbers for each element
    that is transformed, channel by channel: b of all channels, then a of all, then M logits, M means and M logarithms
    of scales of the first channel, then those of the second, and so on.

    Args:
        net: the network of parameters; of C channels transformed it returns (2 + 3 M) C.
        components: M.
        scale: of the affine map, a number or a tensor [channels transformed], learned if it is an ``nn.Parameter``.
        mask: 1 where x is kept, broadcast to [C, ...]; None splits.
        swap: of the split form: keep the second part and transform the first.

    Raises:
        ValueError: ``components`` below 1; a mask with ``swap``, or of other numbers than 0 and 1; shapes that do not
            fit, when it is called.

    Reference: Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", ICML 2019.

    Example:
        >>> layer = LogisticMixtureCoupling(nn.Conv2d(2, 2 * (2 + 3 * 4), 3, padding=1), components=4)
        >>> y, log_det = layer(torch.randn(5, 4, 8, 8))
        >>> y.shape, log_det.shape
        (torch.Size([5, 4, 8, 8]), torch.Size([5]))
    """

    def __init__(
        self,
        net: nn.Module,
        components: int,
        *,
        scale: Tensor | float = 1.0,
        mask: Tensor | None = None,
        swap: bool = False,
    ) -> None:
        super().__init__(net, mask, swap)
        check_integers(components=components)
        self.components = components
        if isinstance(scale, nn.Parameter):
            self.scale = scale
        else:
            self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.get_default_dtype()))

    def _transform(self, x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        channels, size = x.shape[1], 3 * self.components
        wanted = (x.shape[0], (2 + size) * channels, *x.shape[2:])
        if parameters.shape != wanted:
            raise ValueError(f"net must return shape {wanted}, got {tuple(parameters.shape)}")
        affine, mixture = parameters.split((2 * channels, size * channels), 1)
        mixture = mixture.unflatten(1, (channels, size)).movedim(2, -1)
        if inverse:
            x, log_det = self._affine(x, affine, True)
            return self._mix(x, mixture, log_det, True)
        x, log_det = self._mix(x, mixture, 0, False)
        y, more = self._affine(x, affine, False)
        return y, log_det + more

    def _affine(self, x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return affine_coupling(
            x, parameters, parameterisation="tanh", inverse=inverse, scale=self.scale, mask=self.mask
        )

    def _mix(self, x: Tensor, parameters: Tensor, log_det: Tensor | int, inverse: bool) -> tuple[Tensor, Tensor]:
        y, each = logistic_mixture_cdf(x, parameters, inverse=inverse)
        if self.mask is not None:
            y, each = torch.where(self.mask, x, y), each.masked_fill(self.mask, 0)
        return y, log_det + each.flatten(1).sum(1)

    def extra_repr(self) -> str:
        return f"components={self.components}, swap={self.swap}"
