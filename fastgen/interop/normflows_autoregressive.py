"""The inverse of normflows' masked autoregressive flows, without its D passes."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from normflows.flows.affine.autoregressive import MaskedAffineAutoregressive
from normflows.flows.neural_spline.autoregressive import MaskedPiecewiseRationalQuadraticAutoregressive
from normflows.nets import made
from torch import Tensor, nn

from fastgen.interop.eligible import eligible
from fastgen.interop.masked_network import activation_name, is_elementwise, is_mask_of, is_plain
from fastgen.nn.autoregressive.sequential_inverse import MaskedMap, NetworkPass, invert_by_degree
from fastgen.ops import sequential_affine

_MIN_SCALE = 1e-3
"""Least scale of an affine flow: its scale is sigmoid(raw + 2) + 1e-3."""


def autoregressive_inverse(original: Callable) -> Callable:
    """Replaces ``Autoregressive.inverse``: computes every hidden unit once, for known flows and networks."""

    @functools.wraps(original)
    def inverse(self, inputs, context=None):
        found = None if context is not None else _solution(self, inputs)
        return original(self, inputs, context) if found is None else found

    return inverse


def _solution(flow: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor] | None:
    """Returns outputs and log-determinant, or None where only normflows' own code finds them."""
    is_affine = type(flow) is MaskedAffineAutoregressive
    if not is_affine and type(flow) is not MaskedPiecewiseRationalQuadraticAutoregressive:
        return None
    net = flow.autoregressive_net
    if not _is_known(net) or inputs.shape[1:] != (net.initial_layer.in_features,) or not len(inputs):
        return None
    if is_affine and _is_stack(net):
        parameters = _stack_parameters(net)
        if eligible("sequential_affine", inputs, *parameters):
            return sequential_affine(
                inputs,
                parameters,
                [_feature_degrees(net), *(block.linear.degrees for block in net.blocks)],
                activation=activation_name(net.blocks[0].activation),
                parameterisation="sigmoid",
                min_scale=_MIN_SCALE,
            )
    if len({t.dtype for t in (inputs, *net.parameters())}) != 1:
        return None
    if not is_affine and (isinstance(flow.tails, (list, tuple)) or torch.is_tensor(flow.tail_bound)):
        return None  # the features are not alike

    def invert(u: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return _affine(u, parameters) if is_affine else flow._elementwise_inverse(u, parameters.flatten(1))

    return invert_by_degree(inputs, _feature_degrees(net), _maps(net), _run(net), invert)


def _affine(u: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    raw, shift = parameters.unbind(-1)
    scale = (raw + 2).sigmoid() + _MIN_SCALE
    return (u - shift) / scale, -scale.log().sum(-1)


def _feature_degrees(net: nn.Module) -> Tensor:
    return net.final_layer.degrees[:: net.final_layer.out_features // net.initial_layer.in_features]


def _is_known(net: nn.Module) -> bool:
    """Returns whether a network is normflows' MADE with the masks of its degrees, without batch norm or dropout."""
    if type(net) is not made.MADE or type(net.preprocessing) is not nn.Identity or not is_plain(net):
        return False
    for block in net.blocks:
        if (block.dropout.p and block.training) or not is_elementwise(block.activation):
            return False
        if block.activation is not net.blocks[0].activation:
            return False
        is_residual = type(block) is made.MaskedResidualBlock and not block.use_batch_norm
        if not is_residual and (type(block) is not made.MaskedFeedforwardBlock or block.batch_norm):
            return False
    linear, last = _linear_maps(net), net.final_layer
    if any(type(layer) is not made.MaskedLinear or layer.bias is None for layer in (*linear, last)):
        return False
    inputs, of_first = _feature_degrees(net), net.initial_layer.degrees
    if any(type(b) is made.MaskedResidualBlock and not torch.equal(b.degrees, of_first) for b in net.blocks):
        return False
    for layer in linear:
        if not is_mask_of(layer.mask, layer.degrees, inputs):
            return False
        inputs = layer.degrees
    return is_mask_of(last.mask, last.degrees, inputs, strict=True)


def _linear_maps(net: nn.Module) -> list[nn.Module]:
    """Returns all linear maps but the last, in the order in which they run."""
    found = [net.initial_layer]
    for block in net.blocks:
        found += block.linear_layers if type(block) is made.MaskedResidualBlock else [block.linear]
    return found


def _is_stack(net: nn.Module) -> bool:
    """Returns whether, after the first map, linear maps and activations of ``sequential_affine`` alternate."""
    blocks = list(net.blocks)
    if not blocks or any(type(block) is not made.MaskedFeedforwardBlock for block in blocks):
        return False
    return activation_name(blocks[0].activation) is not None


def _stack_parameters(net: nn.Module) -> list[Tensor]:
    """Returns weights and biases alternately.

    normflows has no activation after the first map, so that the first two are one, of the second's degrees; and it has
    a feature's raw scale and shift side by side in the last.
    """
    first, (second, *others), last = net.initial_layer, [block.linear for block in net.blocks], net.final_layer
    weight = second.weight * second.mask
    found = [weight @ (first.weight * first.mask), weight @ first.bias + second.bias]
    for layer in others:
        found += [layer.weight, layer.bias]
    return [*found, *(torch.cat([t[1::2], t[0::2]]) for t in (last.weight, last.bias))]


def _maps(net: nn.Module) -> list[MaskedMap]:
    """Returns the network's linear maps in the order in which they run."""
    maps, inputs, last = [], _feature_degrees(net), net.final_layer
    for layer in _linear_maps(net):
        maps.append(MaskedMap(layer.weight, layer.bias, inputs, layer.degrees))
        inputs = layer.degrees
    return [*maps, MaskedMap(last.weight, last.bias, inputs, last.degrees - 1)]


def _run(net: nn.Module) -> NetworkPass:
    def run(x: Tensor, linear: Callable[[int, Tensor], Tensor]) -> Tensor:
        hidden, i = linear(0, x), 1
        for block in net.blocks:
            activation = block.activation
            if type(block) is made.MaskedResidualBlock:
                hidden = hidden + linear(i + 1, activation(linear(i, activation(hidden))))
                i += 2
            else:
                hidden = activation(linear(i, hidden))
                i += 1
        return linear(i, hidden)

    return run
