"""Converts state dicts of public Glow implementations to a ``fastgen.models.Glow``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fastgen.fields import one_line
from fastgen.interop.glow_conventions import GlowConventions
from fastgen.models.flows.glow import Glow, GlowConfig
from fastgen.models.saved_weights import built_within, is_dense
from fastgen.nn import ActNorm, AffineCoupling, InvertibleConv1x1, ZeroConv2d


def glow_from_checkpoint(
    state: Mapping[str, Tensor],
    event_shape: tuple[int, int, int],
    conventions: GlowConventions,
    *,
    levels: int = 256,
) -> Glow:
    """Returns the Glow that a state dict of another implementation describes.

    Densities and samples are those of the other implementation: ``model.log_prob(x)`` of x in [0, 1) is its density of
    x less ``conventions.data_offset``. Numbers of scales, steps and hidden channels, the kind of coupling and the dtype
    are read off the state dict. 1x1 convolutions keep their LU factors if all of them have such, and if the conventions
    have fastgen's order of channels; with another order they are factored anew.

    Of a checkpoint with a condition the model takes a context, which moves the prior of the last latents as it does
    there; the other layers of ``Glow`` that see a context give it no weight until the model is trained on.

    Args:
        state: as ``torch.load`` gives it; names may begin with "module.".
        event_shape: (channels, height, width) of the images.
        conventions: what its names and numbers mean; ``ROSINALITY``, ``CHAIYUJIN`` and ``Y0AST`` of
            ``fastgen.interop.glow_conventions``, or your own.
        levels: of the data.

    Raises:
        ValueError: a name is missing or left over, or no tensor is under it; shapes that do not go with ``event_shape``
            or with one another.

    Example:
        >>> state = torch.load("model.pt", weights_only=True)  # runs no code of the file  # doctest: +SKIP
        >>> model = glow_from_checkpoint(state, (3, 64, 64), ROSINALITY, levels=32)  # doctest: +SKIP
    """
    checkpoint = _Checkpoint(state, conventions)
    try:
        return _glow(checkpoint, event_shape, conventions, levels)
    except (IndexError, RuntimeError, TypeError) as error:  # of shapes that were not told apart before
        raise ValueError(f"state must have tensors whose shapes go together, got {one_line(error)}") from error


def _glow(
    checkpoint: _Checkpoint, event_shape: tuple[int, int, int], conventions: GlowConventions, levels: int
) -> Glow:
    steps = checkpoint.count(lambda i: checkpoint.step(0, i, 0))
    scales = checkpoint.count(lambda i: checkpoint.step(i, 0, steps))
    if not steps:
        raise ValueError(
            f"state must have {checkpoint.step(0, 0, 0) + conventions.names.norm_bias}, got another layout"
        )
    names, begin = conventions.names, checkpoint.step(0, 0, steps)
    factored = all(
        checkpoint.has(checkpoint.step(i, j, steps) + names.lower) for i in range(scales) for j in range(steps)
    )
    condition = {}
    if names.condition and checkpoint.has(names.condition + ".weight"):
        field = "classes" if conventions.condition == "class" else "vector"
        condition[field] = checkpoint.take(names.condition + ".weight").shape[1]
    last_channels = len(checkpoint.take(begin + names.last + ".weight"))
    config = GlowConfig(
        event_shape=tuple(event_shape),
        levels=levels,
        scales=scales,
        steps=steps,
        hidden=len(checkpoint.take(begin + names.first + ".weight")),
        coupling="affine" if last_channels == 4 * event_shape[0] else "additive",
        lu=factored,
        learn_top=checkpoint.has(checkpoint.at_end(names.top, scales - 1, steps) + ".weight"),
        edge_bias=conventions.padding == "ones",
        **condition,
    )
    dtype = checkpoint.state[begin + names.norm_bias].dtype
    if not dtype.is_floating_point:
        raise ValueError(f"{begin}{names.norm_bias} must be floating point, got {dtype}")
    model = built_within(lambda: Glow(config), checkpoint.state).to(dtype)
    with torch.no_grad():
        for i, scale in enumerate(model.flow.scales):
            layers, order = scale.layers, _squeezed(config.event_shape[0] * 2**i, conventions)
            for j in range(steps):
                begin = checkpoint.step(i, j, steps)
                _fill_convolution(layers[1 + 2 * j], checkpoint, begin, order)
                _fill_network(layers[2 + 2 * j], checkpoint, begin)
                order = _swapped(len(order), conventions)
            if i < scales - 1:
                _fill_prior(layers[-1].layer, checkpoint, names.split, names.split_log_scale, i, steps)
                continue
            if config.learn_top:
                _fill_prior(layers[-1].layer, checkpoint, names.top, names.top_log_scale, i, steps, order)
            if condition:
                _fill_condition(layers[-1].layer.net, checkpoint, order)
    checkpoint.check_finished()
    return model


class _Checkpoint:
    """A state dict, and the names in it that have been read."""

    def __init__(self, state: Mapping[str, Tensor], conventions: GlowConventions) -> None:
        if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
            raise ValueError(f"state must be a state dict, names to tensors, got {type(state).__name__}")
        for name, value in state.items():
            if not isinstance(value, Tensor) or value.is_complex() or not is_dense(value):
                raise ValueError(
                    f"{name} must be a tensor of numbers, with memory of its own, got {type(value).__name__}"
                )
        prefix = "module." if state and all(name.startswith("module.") for name in state) else ""
        self.state = {name.removeprefix(prefix): value for name, value in state.items()}
        self.conventions, self.names = conventions, conventions.names
        self.read: set[str] = set()

    def has(self, name: str) -> bool:
        return name in self.state

    def take(self, name: str) -> Tensor:
        if name not in self.state:
            raise ValueError(f"state must have {name} under these conventions, got none")
        self.read.add(name)
        value = self.state[name]
        return value.detach().double().cpu()

    def step(self, scale: int, step: int, steps: int) -> str:
        return self.names.step.format(scale=scale, step=step, layer=scale * (steps + 2) + 1 + step)

    def at_end(self, name: str, scale: int, steps: int) -> str:
        """Returns the name of the module after the steps of a scale."""
        return name.format(scale=scale, layer=scale * (steps + 2) + 1 + steps)

    def count(self, begin: Callable[[int], str]) -> int:
        """Returns for how many consecutive numbers there is a step with this prefix."""
        found = 0
        while self.has(begin(found) + self.names.norm_bias):
            found += 1
        return found

    def norm(self, bias: str, scale: str) -> tuple[Tensor, Tensor, Tensor]:
        """Returns bias, log-scale and sign of the ActNorm ``sign exp(log_scale) (x + bias)``."""
        conventions, bias, scale = self.conventions, self.take(bias).flatten(), self.take(scale).flatten()
        if conventions.norm_scale == "log":
            log_scale, sign = conventions.norm_log_factor * scale, torch.ones_like(scale)
        else:
            log_scale, sign = scale.abs().log(), scale.sign()
        if conventions.norm_bias == "subtracted":
            bias = -bias
        elif conventions.norm_bias == "after_scale":
            bias = bias / (sign * log_scale.exp())
        return bias, log_scale, sign

    def check_finished(self) -> None:
        left = [n for n in self.state if n not in self.read and not n.endswith(self.names.ignored)]
        if left:
            raise ValueError(
                f"state must have no other names than these conventions have, got {len(left)}: {', '.join(left[:8])}"
            )


def _squeezed(channels: int, conventions: GlowConventions) -> Tensor:
    """Returns the place in fastgen's order of each of the checkpoint's channels after a squeeze."""
    places = torch.arange(4 * channels)
    if conventions.squeeze == "channel_major":
        return places
    return places.view(channels, 4).T.flatten()


def _swapped(channels: int, conventions: GlowConventions) -> Tensor:
    """Returns the same after a coupling: in fastgen the kept half comes first."""
    places = torch.arange(channels)
    return places if conventions.kept == "first" else places.roll(channels // 2)


def _copy(parameter: Tensor, value: Tensor, name: str) -> None:
    if parameter.shape != value.shape:
        raise ValueError(
            f"{name} must have shape {tuple(parameter.shape)} for this event_shape, got {tuple(value.shape)}"
        )
    parameter.copy_(value)


def _fill_norm(norm: ActNorm, bias: Tensor, log_scale: Tensor, name: str) -> None:
    _copy(norm.bias, bias, name)
    _copy(norm.log_scale, log_scale, name)
    norm.initialized.fill_(True)


def _fill_convolution(layer: InvertibleConv1x1, checkpoint: _Checkpoint, begin: str, order: Tensor) -> None:
    """Fills ActNorm and 1x1 convolution; channels enter at the places ``order`` and leave with the kept half first."""
    names, conventions = checkpoint.names, checkpoint.conventions
    bias, log_scale, sign = checkpoint.norm(begin + names.norm_bias, begin + names.norm_scale)
    if len(bias) != len(order):
        raise ValueError(
            f"{begin}{names.norm_bias} must have {len(order)} channels for this event_shape, got {len(bias)}"
        )
    if begin == checkpoint.step(0, 0, 0):
        bias = bias - conventions.data_offset
    back, leaving = order.argsort(), _swapped(len(order), conventions)
    _fill_norm(layer.act_norm, bias[back], log_scale[back], begin + names.norm_bias)
    if not checkpoint.has(begin + names.lower):
        weight = checkpoint.take(begin + names.weight)
        _copy(layer.weight, (weight.reshape(len(order), -1) * sign)[leaving][:, back], begin + names.weight)
        return
    permutation, lower, upper, log_s, signs = (
        checkpoint.take(begin + name) for name in (names.permutation, names.lower, names.upper, names.log_s, names.sign)
    )
    lower, upper = lower.tril(-1), upper.triu(1) * sign
    diagonal = signs * log_s.exp() * sign
    in_order = torch.equal(back, leaving) and torch.equal(back, torch.arange(len(back)))
    if not (layer.lu and in_order):
        weight = permutation @ (lower + torch.eye(len(order), dtype=lower.dtype)) @ (upper + diagonal.diag())
        weight = weight[leaving][:, back]
        if not layer.lu:
            _copy(layer.weight, weight, begin + names.lower)
            return
        permutation, lower, upper = torch.linalg.lu(weight)
        diagonal, lower, upper = upper.diagonal(), lower.tril(-1), upper.triu(1)
    layer.permutation.copy_(permutation.argmax(1))
    for parameter, value in (
        (layer.lower, lower),
        (layer.upper, upper),
        (layer.log_s, diagonal.abs().log()),
        (layer.sign, diagonal.sign()),
    ):
        _copy(parameter, value, begin + names.lower)


def _fill_network(coupling: nn.Module, checkpoint: _Checkpoint, begin: str) -> None:
    names, conventions, net = checkpoint.names, checkpoint.conventions, coupling.net
    for convolution, norm, name, norm_names in (
        (net.first, net.first_norm, begin + names.first, names.first_norm),
        (net.second, net.second_norm, begin + names.second, names.second_norm),
    ):
        weight = checkpoint.take(name + ".weight")
        if norm_names is None:
            bias, log_scale = checkpoint.take(name + ".bias"), torch.zeros(len(weight))
        else:
            bias, log_scale, sign = checkpoint.norm(*(begin + norm_name for norm_name in norm_names))
            weight, bias = weight * sign[:, None, None, None], bias * sign
        _copy(convolution.weight, weight, name)
        if convolution.edge_weight is not None:
            convolution.edge_weight.zero_()
        _fill_norm(norm, bias, log_scale, name)
    if net.context is not None:
        net.context.weight.zero_()
    outputs = len(net.last.log_scale)
    is_affine = isinstance(coupling, AffineCoupling)
    order = _interleaved(outputs, conventions.coupling) if is_affine else torch.arange(outputs)
    _fill_zero_convolution(net.last, checkpoint, begin + names.last, begin + names.last_log_scale, order)
    if is_affine:
        offset = conventions.sigmoid_offset - 2
        net.last.conv.bias[1::2] += offset * (-3 * net.last.log_scale[1::2]).exp()


def _fill_prior(
    coupling: AffineCoupling,
    checkpoint: _Checkpoint,
    name: str,
    log_scale: str,
    scale: int,
    steps: int,
    order: Tensor | None = None,
) -> None:
    """Fills a prior; ``order``, at the top, has the places of the checkpoint's channels."""
    conventions, outputs = checkpoint.conventions, len(coupling.net.log_scale)
    if order is None:
        outputs_order = _interleaved(outputs, conventions.split_prior)
    else:
        outputs_order = _order_at_top(outputs, order, conventions)
    _fill_zero_convolution(
        coupling.net,
        checkpoint,
        checkpoint.at_end(name, scale, steps),
        checkpoint.at_end(log_scale, scale, steps),
        outputs_order,
        is_top=order is not None,
    )


def _fill_condition(layer: ZeroConv2d, checkpoint: _Checkpoint, order: Tensor) -> None:
    """Adds the linear map of the context, times the exponentials of its own logarithms, to the prior at the top."""
    conventions, names = checkpoint.conventions, checkpoint.names
    weight, bias = checkpoint.take(names.condition + ".weight"), checkpoint.take(names.condition + ".bias")
    log_scale = checkpoint.take(names.condition_log_scale).flatten() * conventions.log_scale_factor
    if len(bias) != len(layer.log_scale):
        raise ValueError(
            f"{names.condition}.bias must have {len(layer.log_scale)} numbers for this event_shape, got {len(bias)}"
        )
    order = _order_at_top(len(bias), order, conventions)
    factor = (log_scale[order] - 3 * layer.log_scale).exp()
    layer.context.weight.copy_(factor[:, None] * weight[order])
    layer.conv.bias += factor * bias[order]


def _fill_zero_convolution(
    layer: ZeroConv2d, checkpoint: _Checkpoint, name: str, log_scale: str, order: Tensor, *, is_top: bool = False
) -> None:
    """Fills a zero convolution; ``order`` has the checkpoint's output for each place. At the top the input is 0."""
    conventions = checkpoint.conventions
    weight, bias = checkpoint.take(name + ".weight"), checkpoint.take(name + ".bias")
    log_scale = checkpoint.take(log_scale).flatten() * (conventions.log_scale_factor / 3)
    if len(bias) != len(order):
        raise ValueError(f"{name}.bias must have {len(order)} numbers for this event_shape, got {len(bias)}")
    if layer.conv.edge_weight is not None:
        _copy(layer.conv.edge_weight, weight.sum(1, keepdim=True)[order], name)
    if is_top:
        layer.conv.weight.zero_()
    else:
        _copy(layer.conv.weight, weight[order], name)
    _copy(layer.conv.bias, bias[order], name)
    _copy(layer.log_scale, log_scale[order], name)


def _order_at_top(outputs: int, order: Tensor, conventions: GlowConventions) -> Tensor:
    """Returns the checkpoint's output for each place: shifts, then scales, for channels at ``order``."""
    shifts, scales = _interleaved(outputs, conventions.top_prior).view(-1, 2).T[:, order.argsort()]
    return torch.cat([shifts, scales])


def _interleaved(outputs: int, halves: str) -> Tensor:
    """Returns the places of shift, scale, shift, ... in the checkpoint."""
    places = torch.arange(outputs)
    if halves == "interleaved":
        return places
    first, second = places.chunk(2)
    return torch.stack([first, second] if halves == "shift_first" else [second, first], 1).flatten()
