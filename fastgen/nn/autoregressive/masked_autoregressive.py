"""Autoregressive flow layers of any elementwise map whose parameters a masked network gives."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from fastgen.nn.autoregressive.made import MaskedMLP, ResMADE
from fastgen.nn.autoregressive.sequential_inverse import MaskedMap, invert_by_degree
from fastgen.nn.flow.flow_layer import FlowLayer


class MaskedAutoregressive(FlowLayer):
    """An elementwise map whose parameters for a feature depend on the features before it: ``forward(x, context=None)``
    and ``inverse`` return (u or x [N, D], log_det [N]).

    ``forward`` is one parallel pass of the network. ``inverse`` goes feature by feature and computes every unit of the
    network once, when what it sees is there: about the work of one pass, in D small steps. Gradients of both directions
    are exact.

    Args:
        network: gives every feature P parameters.
        transform: the elementwise map, a module with ``parameters_per_element`` P and ``forward(x, parameters)`` and
            ``inverse`` of x [N, n] and parameters [N, n, P], which return (y [N, n], log_det [N]).

    Raises:
        ValueError: a network of another number of outputs; shapes that do not fit, when it is called.

    Reference: Papamakarios, Pavlakou, Murray, "Masked autoregressive flow for density estimation", NeurIPS 2017.

    Example:
        >>> import torch
        >>> from fastgen.nn import ResMADE, SplineTransform
        >>> spline = SplineTransform(bins=4)
        >>> layer = MaskedAutoregressive(ResMADE(5, spline.parameters_per_element, width=32), spline)
        >>> x = torch.randn(8, 5)
        >>> u, log_det = layer(x)
        >>> torch.allclose(layer.inverse(u)[0], x, atol=1e-4)
        True
    """

    takes_context = True

    def __init__(self, network: MaskedMLP | ResMADE, transform: nn.Module) -> None:
        super().__init__()
        if network.outputs_per_feature != transform.parameters_per_element:
            raise ValueError(
                f"network must have {transform.parameters_per_element} outputs a feature, as many as the transform "
                f"takes, got {network.outputs_per_feature}"
            )
        self.network, self.transform = network, transform

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [N, D] to (u, log_det [N]), all features at once."""
        return self.transform(x, self.network(x, context))

    def inverse(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u [N, D] to (x, log_det [N] of that), feature by feature."""
        if u.dim() != 2 or u.shape[1] != self.network.features:
            raise ValueError(f"u must have shape [N, {self.network.features}], got {tuple(u.shape)}")
        network, features = self.network, self.network.degrees[0]
        offsets = network.offsets(context)
        of_outputs = features.repeat_interleave(network.outputs_per_feature) - 1
        maps = [
            MaskedMap(layer.weight, layer.bias, inputs, outputs, offsets.get(i))
            for i, (layer, (inputs, outputs)) in enumerate(
                zip(network.layers, pairwise([*network.degrees, of_outputs]), strict=True)
            )
        ]
        return invert_by_degree(u, features, maps, network.run, self.transform.inverse)
