"""The sequential direction of an affine autoregressive flow, in plain PyTorch: one full pass for each feature.

Germain, Gregor, Murray, Larochelle, "MADE" (2015); Papamakarios, Pavlakou, Murray, "Masked autoregressive flow for
density estimation" (2017); Kingma et al., "Improved variational inference with inverse autoregressive flow" (2016).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "elu": F.elu}
"""Activations in the order in which the kernels number them; the derivative of each is a function of its value."""
PARAMETERISATIONS = ("exp", "sigmoid", "softplus", "bounded")
"""Parameterisations in the order in which the kernels number them."""


def layer_sizes(widths: Sequence[int]) -> list[tuple[int, int]]:
    """Returns (inputs, outputs) of every linear map, from the widths of the features and of the hidden layers."""
    return list(itertools.pairwise([*widths, 2 * widths[0]]))


def parameter_count(widths: Sequence[int]) -> int:
    """Returns how many numbers the weights and biases have together."""
    return sum((before + 1) * after for before, after in layer_sizes(widths))


def masks_of(degrees: Sequence[Tensor]) -> list[Tensor]:
    """Returns the mask of every linear map, bool [outputs, inputs]."""
    features, *hidden = degrees
    inner = [after[:, None] >= before for before, after in itertools.pairwise([features, *hidden])]
    return [*inner, torch.cat([features, features])[:, None] > hidden[-1]]


def parallel(
    x: Tensor, shift: Tensor, raw: Tensor, parameterisation: int, min_scale: float, bound: float
) -> tuple[Tensor, Tensor]:
    """Returns ``(u, log |du/dx| [N])``, all features at once."""
    if parameterisation == PARAMETERISATIONS.index("exp"):
        return (x - shift) * (-raw).exp(), -raw.sum(-1)
    log_scale = _log_scale(raw, parameterisation, min_scale, bound)
    return x * log_scale.exp() + shift, log_scale.sum(-1)


def _log_scale(raw: Tensor, parameterisation: int, min_scale: float, bound: float) -> Tensor:
    if parameterisation == PARAMETERISATIONS.index("sigmoid"):
        return ((raw + 2).sigmoid() + min_scale).log()
    if parameterisation == PARAMETERISATIONS.index("softplus"):
        return (F.softplus(raw) + min_scale).log()
    return raw / (1 + raw.abs() / bound)


def _linear_maps(parameters: Tensor, degrees: Tensor, widths: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Returns the masked weight and the bias of every linear map."""
    start = 0
    for (before, after), mask in zip(layer_sizes(widths), masks_of(degrees.split(list(widths))), strict=True):
        weight, bias = parameters[start : start + (before + 1) * after].split([before * after, after])
        yield weight.reshape(after, before).masked_fill(~mask, 0), bias
        start += (before + 1) * after


def sequential_affine(
    u: Tensor,
    offset: Tensor,
    parameters: Tensor,
    degrees: Tensor,
    widths: Sequence[int],
    activation: int,
    parameterisation: int,
    min_scale: float,
    bound: float,
) -> tuple[Tensor, Tensor]:
    """``(x, log |dx/du| [N])``. With shift t and raw scale a of feature d computed from features of lower degree::

        exp:       x = u exp(a) + t
        sigmoid:   x = (u - t) / s,  s = sigmoid(a + 2) + min_scale
        softplus:  x = (u - t) / s,  s = softplus(a) + min_scale
        bounded:   x = (u - t) / s,  s = exp(a / (1 + |a| / bound))

    Args:
        u: [N, D].
        offset: [N, H] or [1, H], added to the first hidden layer before its activation.
        parameters: weight [outputs, inputs] and bias of every linear map, one after the other, flat; the last map has
            all shifts, then all raw scales.
        degrees: int64, of the features, then of each hidden layer.
        widths: D, and the width of each hidden layer.
        activation: index in ``ACTIVATIONS``.
        parameterisation: index in ``PARAMETERISATIONS``.
    """
    function = list(ACTIVATIONS.values())[activation]
    (first, first_bias), *inner, (last, last_bias) = _linear_maps(parameters, degrees, widths)
    of_features = degrees[: widths[0]]
    x, log_det = torch.zeros_like(u), torch.zeros_like(u)
    for degree in range(1, widths[0] + 1):
        hidden = function(F.linear(x, first, first_bias) + offset)
        for weight, bias in inner:
            hidden = function(F.linear(hidden, weight, bias))
        shift, raw = F.linear(hidden, last, last_bias).chunk(2, -1)
        here = of_features == degree
        shift, raw = shift.masked_fill(~here, 0), raw.masked_fill(~here, 0)
        if parameterisation == PARAMETERISATIONS.index("exp"):
            log_scale = raw
            found = u * raw.exp() + shift
        else:
            log_scale = -_log_scale(raw, parameterisation, min_scale, bound)
            found = (u - shift) * log_scale.exp()
        x, log_det = torch.where(here, found, x), torch.where(here, log_scale, log_det)
    return x, log_det.sum(-1)


def cyclic_degrees(features: int, hidden: int, lowest: int) -> Tensor:
    """Returns ``lowest``, ..., D - 1 over and over: the degrees of a hidden layer of so many units."""
    return torch.arange(hidden) % (features - lowest) + lowest


def _case(
    samples: int,
    *widths: int,
    activation: str = "tanh",
    parameterisation: str = "exp",
    context: bool = False,
    random: bool = False,
    size: float = 1.0,
):
    features, *hidden = widths

    def make(generator: torch.Generator) -> dict:
        lowest = 0 if context else min(1, features - 1)
        degrees = [torch.arange(1, features + 1), *(cyclic_degrees(features, h, lowest) for h in hidden)]
        if random:
            degrees = [torch.randperm(features, generator=generator) + 1]
            degrees += [torch.randint(0, features + 1, (h,), generator=generator) for h in hidden]
        weights = [
            part
            for before, after in layer_sizes(widths)
            for part in (
                torch.randn(after * before, generator=generator) * size / before**0.5,
                torch.randn(after, generator=generator) * 0.3,
            )
        ]
        given = {
            "u": torch.randn(samples, features, generator=generator),
            "parameters": torch.cat(weights),
            "degrees": degrees,
            "activation": activation,
            "parameterisation": parameterisation,
        }
        return given | ({"context": torch.randn(samples, hidden[0], generator=generator)} if context else {})

    return make


CASES = {
    "small": _case(2, 3, 4, context=True),
    "small sigmoid": _case(2, 2, 3, 3, activation="elu", parameterisation="sigmoid"),
    "small softplus": _case(2, 3, 5, activation="relu", parameterisation="softplus", random=True),
    "small bounded": _case(1, 2, 2, 2, activation="sigmoid", parameterisation="bounded", context=True),
    "none": _case(0, 3, 4, context=True),
    "one": _case(1, 1, 1),
    "one feature": _case(5, 1, 7, 3, context=True),
    "one hidden unit": _case(3, 5, 1, random=True),
    "prime": _case(13, 7, 29, 23, activation="elu"),
    "random degrees": _case(17, 11, 37, 31, activation="elu", parameterisation="softplus", random=True, context=True),
    "more than a panel": _case(67, 5, 19, activation="sigmoid", parameterisation="sigmoid", context=True),
    "many features": _case(5, 35, 70, 41, size=0.7),
    "three layers": _case(33, 9, 24, 17, 40, activation="relu", parameterisation="bounded", random=True),
    "large": _case(6, 6, 21, activation="tanh", parameterisation="bounded", size=5.0),
}
