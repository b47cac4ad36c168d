"""The inverse of nflows 0.14's masked autoregressive transforms, without its D passes."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from nflows.transforms import autoregressive, made
from torch import Tensor, nn

from fastgen.interop.by_degree import (
    Activation,
    Features,
    Linear,
    Sum,
    Units,
    activation_name,
    is_elementwise,
    is_mask_of,
    is_plain,
    is_recorded,
    solve,
    with_values,
)
from fastgen.interop.eligible import eligible
from fastgen.ops import sequential_affine

_inverse = autoregressive.AutoregressiveTransform.inverse
_Affine = autoregressive.MaskedAffineAutoregressiveTransform
_Spline = autoregressive.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
_ELEMENTWISE = "_elementwise_inverse", "_elementwise", "_unconstrained_scale_and_shift", "_output_dim_multiplier"


@functools.wraps(_inverse)
def inverse(self, inputs, context=None):
    network = getattr(self, "autoregressive_net", None)
    found = _solution(self, network, inputs, context) if _is_known(network) and _fit(network, inputs, context) else None
    if found is None:
        return _inverse(self, inputs, context)
    with torch.no_grad():  # nflows' own last pass, so that its forward gives the inputs back to the last bit
        last = self._elementwise_inverse(inputs, self.autoregressive_net(found[0].detach(), context))
    return tuple(with_values(*pair) for pair in zip(found, last, strict=True))


def _solution(
    transform: nn.Module, network: made.MADE, inputs: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Outputs and log-determinant, or None where only nflows' own code finds them."""
    is_affine = _has_code_of(transform, _Affine)
    if is_affine and _is_stack(network):
        parameters, offset = _stack_parameters(network), _offset(network, context)
        if eligible("sequential_affine", inputs, *parameters, *([] if offset is None else [offset])):
            return sequential_affine(
                inputs,
                parameters,
                _degrees(network),
                context=offset,
                activation=activation_name(network.activation),
                parameterisation="softplus",
                min_scale=transform._epsilon,
            )
    if not (is_affine or _has_code_of(transform, _Spline)) or is_recorded(network, inputs, context):
        return None
    if len({t.dtype for t in (inputs, *network.parameters())}) != 1:
        return None
    features, layers = _layers(network, inputs, context)
    invert = functools.partial(_affine, transform._epsilon) if is_affine else transform._elementwise_inverse
    return solve(inputs, features, layers, network.final_layer.weight, network.final_layer.bias, invert)


def _affine(epsilon: float, u: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    raw, shift = parameters.unflatten(-1, (-1, 2)).unbind(-1)
    scale = F.softplus(raw) + epsilon
    return (u - shift) / scale, -scale.log().sum(-1)


def _has_code_of(transform: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the transform's elementwise map is that of this class, not overridden."""
    return isinstance(transform, kind) and all(
        getattr(type(transform), name, None) is getattr(kind, name, None) for name in _ELEMENTWISE
    )


def _is_known(network: nn.Module) -> bool:
    """Whether a network is nflows' MADE with masks that are those of its degrees, and without batch norm or dropout."""
    if type(network) is not made.MADE or not is_plain(network) or not is_elementwise(network.activation):
        return False
    degrees = network.initial_layer.degrees
    features = torch.arange(network.initial_layer.in_features, device=degrees.device) + 1
    if not is_mask_of(network.initial_layer.mask, degrees, features):
        return False
    for block in network.blocks:
        if block.dropout.p and block.training:
            return False
        if type(block) is made.MaskedResidualBlock:
            if block.use_batch_norm or not torch.equal(block.degrees, degrees):
                return False
            linear_maps = block.linear_layers
        elif type(block) is made.MaskedFeedforwardBlock and not block.batch_norm:
            linear_maps = [block.linear]
        else:
            return False
        if block.activation is not network.activation:
            return False
        for linear in linear_maps:
            if not is_mask_of(linear.mask, linear.degrees, degrees):
                return False
            degrees = linear.degrees
    last = network.final_layer
    return is_mask_of(last.mask, features.repeat_interleave(last.out_features // len(features)), degrees, strict=True)


def _fit(network: made.MADE, inputs: Tensor, context: Tensor | None) -> bool:
    """Whether the network takes these inputs, and a context if there is one."""
    if not isinstance(inputs, Tensor) or inputs.shape[1:] != (network.initial_layer.in_features,) or not len(inputs):
        return False
    if context is None:
        return True
    layer = getattr(network, "context_layer", None)
    return layer is not None and isinstance(context, Tensor) and context.shape == (len(inputs), layer.in_features)


def _is_stack(network: made.MADE) -> bool:
    """Whether it is what ``sequential_affine`` computes: linear maps and activations by turns."""
    return not network.use_residual_blocks and activation_name(network.activation) is not None


def _degrees(network: made.MADE) -> list[Tensor]:
    first = network.initial_layer.degrees
    features = torch.arange(network.initial_layer.in_features, device=first.device) + 1
    return [features, first, *(block.degrees for block in network.blocks)]


def _stack_parameters(network: made.MADE) -> list[Tensor]:
    """Weights and biases by turns; nflows has a feature's raw scale and shift side by side in the last."""
    found = []
    for linear in (network.initial_layer, *(block.linear for block in network.blocks)):
        found += [linear.weight, linear.bias]
    last = network.final_layer
    return [*found, *(torch.cat([t[1::2], t[0::2]]) for t in (last.weight, last.bias))]


def _offset(network: made.MADE, context: Tensor | None) -> Tensor | None:
    """What the context adds to the first hidden layer."""
    return None if context is None else network.activation(network.context_layer(context))


def _layers(network: made.MADE, inputs: Tensor, context: Tensor | None) -> tuple[Features, list[Units]]:
    features = Features(inputs, _degrees(network)[0])
    layers: list[Units] = []

    def add(layer: Units) -> Units:
        layers.append(layer)
        return layer

    def linear(source: Units, of: made.MaskedLinear, offset: Tensor | None = None) -> Units:
        return add(Linear(source, of.weight, of.bias, of.degrees, offset))

    def activation(source: Units) -> Units:
        return add(Activation(source, network.activation))

    hidden = linear(features, network.initial_layer, _offset(network, context))
    if not network.use_residual_blocks:
        hidden = activation(hidden)
    for block in network.blocks:
        if network.use_residual_blocks:
            offset = None if context is None else block.context_layer(context)
            inner = activation(linear(activation(hidden), block.linear_layers[0], offset))
            hidden = add(Sum(hidden, linear(inner, block.linear_layers[1])))
        else:
            hidden = activation(linear(hidden, block.linear))
    return features, layers
