"""Flow layers one after another, and a layer turned round."""

from __future__ import annotations

from torch import Tensor, nn

from fastgen.nn.flow.flow_layer import FlowLayer, chosen, no_log_det, optional_arguments
from fastgen.ops.seeds import fold_in


class FlowSequential(FlowLayer):
    """Flow layers in a row: ``forward(x, context=None)`` and ``inverse`` return (z, log_det [N]), the sum of theirs.

    A layer that takes a context gets the context, and one that takes a seed gets a seed of its own, made of ``seed``
    (None leaves it to the layer to draw one from PyTorch's generator).

    Args:
        layers: from data to noise, each a ``FlowLayer``, or any module with ``forward(x)`` or ``forward(x, context)``
            and an ``inverse`` of the same arguments, both of which return a tensor and the log-determinant [N]. Such a
            module is given those of ``context`` and ``seed`` that its ``forward`` names. Without layers the flow is the
            identity.

    Raises:
        TypeError: a layer has no method ``inverse``.

    Example:
        >>> from fastgen.nn import ActNorm, AdditiveCoupling
        >>> flow = FlowSequential(ActNorm(4), AdditiveCoupling(nn.Linear(2, 2)))
        >>> z, log_det = flow(torch.randn(5, 4))
        >>> z.shape, log_det.shape
        (torch.Size([5, 4]), torch.Size([5]))
    """

    takes_context = True
    takes_seed = True

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._optional = [optional_arguments(layer) for layer in layers]

    def forward(self, x: Tensor, context: Tensor | None = None, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """x to (z, log_det [N])."""
        total = no_log_det(x)
        for i, (layer, names) in enumerate(zip(self.layers, self._optional, strict=True)):
            x, log_det = layer(x, **chosen(names, context, fold_in(seed, i)))
            total = total + log_det
        return x, total

    def inverse(self, z: Tensor, context: Tensor | None = None, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """z to (x, log_det [N] of that)."""
        total = no_log_det(z)
        for i in reversed(range(len(self.layers))):
            z, log_det = self.layers[i].inverse(z, **chosen(self._optional[i], context, fold_in(seed, i)))
            total = total + log_det
        return z, total


class Inverse(FlowLayer):
    """A flow layer turned round: its ``forward`` is the layer's ``inverse``, and the other way about.

    Example:
        >>> from fastgen.nn import ActNorm
        >>> layer = ActNorm(4).eval()
        >>> x = torch.randn(5, 4)
        >>> torch.equal(Inverse(layer)(x)[0], layer.inverse(x)[0])
        True
    """

    takes_context = True
    takes_seed = True

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self._optional = layer, optional_arguments(layer)

    def forward(self, x: Tensor, context: Tensor | None = None, seed: int | None = None) -> tuple[Tensor, Tensor]:
        return self.layer.inverse(x, **chosen(self._optional, context, seed))

    def inverse(self, z: Tensor, context: Tensor | None = None, seed: int | None = None) -> tuple[Tensor, Tensor]:
        return self.layer(z, **chosen(self._optional, context, seed))
