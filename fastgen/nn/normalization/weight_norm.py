"""Weight normalisation of a whole network, and its data-dependent initialisation (Salimans & Kingma 2016)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from fastgen.nn.normalization.channel_moments import constant_channels

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def apply_weight_norm(network: nn.Module) -> nn.Module:
    """``weight = g v / |v|``, a norm per output channel, in every linear and convolution layer; g = 1, bias = 0."""
    for layer in [m for m in network.modules() if isinstance(m, LAYERS)]:
        weight_norm(layer, dim=_output_dim(layer))
        with torch.no_grad():
            layer.parametrizations.weight.original0.fill_(1)
            if layer.bias is not None:
                layer.bias.zero_()
    return network


@torch.no_grad()
def initialize_weight_norm(
    network: nn.Module, run: Callable[[], Tensor], scales: dict[nn.Module, float] | None = None
) -> None:
    """Sets g and the bias of every weight-normed layer so that, over one batch, each output channel has mean 0 and a
    given deviation. A channel that is constant over the batch keeps its g, and a RuntimeWarning says so.

    Args:
        network: a network whose layers were weight-normed; its layers must be called once each by ``run``.
        run: runs the network on the batch; the layers are set in the order in which they are called.
        scales: the standard deviation for some layers; 1 for the others.
    """
    scales, hooks = scales or {}, []

    def normalise(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        channel = output.dim() - 1 if isinstance(layer, nn.Linear) else 1
        dims = [d for d in range(output.dim()) if d != channel]
        shape = [1 if d in dims else -1 for d in range(output.dim())]
        variance, mean = torch.var_mean(output, dims, correction=0)
        scale = scales.get(layer, 1.0) / (variance + 1e-10).sqrt()
        scale = scale.masked_fill(constant_channels(mean, variance, "initialize_weight_norm"), 1)
        gain = layer.parametrizations.weight.original0
        gain.mul_(scale.view([-1 if d == _output_dim(layer) else 1 for d in range(gain.dim())]))
        layer.bias.sub_(mean).mul_(scale)
        return (output - mean.view(shape)) * scale.view(shape)

    try:
        for layer in network.modules():
            if isinstance(layer, LAYERS) and parametrize.is_parametrized(layer, "weight") and layer.bias is not None:
                hooks.append(layer.register_forward_hook(normalise))
        run()
    finally:
        for hook in hooks:
            hook.remove()


def _output_dim(layer: nn.Module) -> int:
    return 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0
