"""The inverse of nflows 0.14's masked autoregressive transforms, without its D passes."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from nflows.transforms import autoregressive, made
from torch import Tensor, nn

from fastgen.interop.eligible import eligible
from fastgen.interop.masked_network import activation_name, is_elementwise, is_mask_of, is_plain, with_values
from fastgen.nn.autoregressive.sequential_inverse import MaskedMap, NetworkPass, invert_by_degree
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
    """Returns outputs and log-determinant, or None where only nflows' own code finds them."""
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
    if not (is_affine or _has_code_of(transform, _Spline)):
        return None
    if len({t.dtype for t in (inputs, *network.parameters())}) != 1:
        return None

    def invert(u: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        if is_affine:
            return _affine(transform._epsilon, u, parameters)
        return transform._elementwise_inverse(u, parameters.flatten(1))

    return invert_by_degree(inputs, _degrees(network)[0], _maps(network, context), _run(network), invert)


def _affine(epsilon: float, u: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    raw, shift = parameters.unbind(-1)
    scale = F.softplus(raw) + epsilon
    return (u - shift) / scale, -scale.log().sum(-1)


def _has_code_of(transform: nn.Module, kind: type[nn.Module]) -> bool:
    """Returns whether the transform's elementwise map is that of this class, not overridden."""
    return isinstance(transform, kind) and all(
        getattr(type(transform), name, None) is getattr(kind, name, None) for name in _ELEMENTWISE
    )


def _is_known(network: nn.Module) -> bool:
    """Returns whether a network is nflows' MADE with the masks of its degrees, without batch norm or dropout."""
    if type(network) is not made.MADE or not is_plain(network) or not is_elementwise(network.activation):
        return False
    residual = network.use_residual_blocks
    kind = made.MaskedResidualBlock if residual else made.MaskedFeedforwardBlock
    for block in network.blocks:
        if type(block) is not kind or (block.use_batch_norm if residual else block.batch_norm):
            return False
        if block.activation is not network.activation or (block.dropout.p and block.training):
            return False
    linear, last = _linear_maps(network), network.final_layer
    if any(type(layer) is not made.MaskedLinear or layer.bias is None for layer in (*linear, last)):
        return False
    degrees = network.initial_layer.degrees
    if residual and not all(torch.equal(block.degrees, degrees) for block in network.blocks):
        return False
    features = torch.arange(network.initial_layer.in_features, device=degrees.device) + 1
    inputs = features
    for layer in linear:
        if not is_mask_of(layer.mask, layer.degrees, inputs):
            return False
        inputs = layer.degrees
    return is_mask_of(last.mask, features.repeat_interleave(last.out_features // len(features)), inputs, strict=True)


def _linear_maps(network: made.MADE) -> list[nn.Module]:
    """Returns all linear maps but the last, in the order in which they run."""
    blocks = network.blocks
    in_blocks = [block.linear_layers if network.use_residual_blocks else [block.linear] for block in blocks]
    return [network.initial_layer, *(layer for layers in in_blocks for layer in layers)]


def _fit(network: made.MADE, inputs: Tensor, context: Tensor | None) -> bool:
    """Returns whether the network takes these inputs, and a context if there is one."""
    if not isinstance(inputs, Tensor) or inputs.shape[1:] != (network.initial_layer.in_features,) or not len(inputs):
        return False
    if context is None:
        return True
    layer = getattr(network, "context_layer", None)
    return layer is not None and isinstance(context, Tensor) and context.shape == (len(inputs), layer.in_features)


def _is_stack(network: made.MADE) -> bool:
    """Returns whether ``sequential_affine`` computes the network: alternating linear maps and activations."""
    return not network.use_residual_blocks and activation_name(network.activation) is not None


def _degrees(network: made.MADE) -> list[Tensor]:
    first = network.initial_layer.degrees
    features = torch.arange(network.initial_layer.in_features, device=first.device) + 1
    return [features, first, *(block.degrees for block in network.blocks)]


def _stack_parameters(network: made.MADE) -> list[Tensor]:
    """Returns weights and biases alternately; in nflows a feature's raw scale and shift are neighbours in the last."""
    found = []
    for linear in _linear_maps(network):
        found += [linear.weight, linear.bias]
    last = network.final_layer
    return [*found, *(torch.cat([t[1::2], t[0::2]]) for t in (last.weight, last.bias))]


def _offset(network: made.MADE, context: Tensor | None) -> Tensor | None:
    """Returns what the context adds to the first hidden layer."""
    return None if context is None else network.activation(network.context_layer(context))


def _maps(network: made.MADE, context: Tensor | None) -> list[MaskedMap]:
    """Returns the network's linear maps in the order in which they run."""
    features, last = _degrees(network)[0], network.final_layer
    offsets = [_offset(network, context)]
    for block in network.blocks:
        if network.use_residual_blocks:
            offsets += [None if context is None else block.context_layer(context), None]
        else:
            offsets.append(None)
    maps, inputs = [], features
    for layer, offset in zip(_linear_maps(network), offsets, strict=True):
        maps.append(MaskedMap(layer.weight, layer.bias, inputs, layer.degrees, offset))
        inputs = layer.degrees
    of_outputs = features.repeat_interleave(last.out_features // len(features)) - 1
    return [*maps, MaskedMap(last.weight, last.bias, inputs, of_outputs)]


def _run(network: made.MADE) -> NetworkPass:
    activation = network.activation

    def residual(x: Tensor, linear: Callable[[int, Tensor], Tensor]) -> Tensor:
        hidden = linear(0, x)
        for i in range(1, 1 + 2 * len(network.blocks), 2):
            hidden = hidden + linear(i + 1, activation(linear(i, activation(hidden))))
        return linear(1 + 2 * len(network.blocks), hidden)

    def plain(x: Tensor, linear: Callable[[int, Tensor], Tensor]) -> Tensor:
        for i in range(1 + len(network.blocks)):
            x = activation(linear(i, x))
        return linear(1 + len(network.blocks), x)

    return residual if network.use_residual_blocks else plain
