"""Flow layers with other options and shapes than in ``layer_cases.py``: the laws of flow layers hold for them too."""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor, nn

from fastgen import nn as f
from tests.nn.layer_cases import Case

MASK = torch.tensor([1.0, 0, 1, 0, 1])
FEATURES, CONTEXT = 5, 3
IMAGE = (3, 2, 2)

VARIANTS: dict[str, Case] = {}


def _affine_couplings() -> None:
    for how in ("exp", "tanh", "sigmoid"):
        name, affine = f"AffineCoupling, {how}", functools.partial(f.AffineCoupling, parameterisation=how)
        VARIANTS[name] = Case(lambda new=affine: new(nn.Linear(3, 4)), ((FEATURES,),))
        VARIANTS[f"{name}, swapped"] = Case(
            lambda new=affine: new(nn.Linear(2, 6), swap=True, interleaved=True), ((FEATURES,),)
        )
        VARIANTS[f"{name}, mask"] = Case(
            lambda new=affine: new(nn.Linear(5, 10), mask=MASK, scale=nn.Parameter(torch.rand(5))), ((FEATURES,),)
        )


def _mixture_couplings() -> None:
    mixture, name = f.LogisticMixtureCoupling, "LogisticMixtureCoupling"
    VARIANTS[f"{name}, one component, swapped"] = Case(
        lambda: mixture(nn.Linear(2, 3 * (2 + 3)), components=1, swap=True), ((FEATURES,),)
    )
    VARIANTS[f"{name}, mask"] = Case(
        lambda: mixture(nn.Linear(5, 5 * (2 + 12)), components=4, mask=MASK, scale=nn.Parameter(torch.rand(5))),
        ((FEATURES,),),
    )
    VARIANTS["FlowPlusPlusStep, swapped, with a context"] = Case(
        lambda: f.FlowPlusPlusStep((4, 1, 2), 8, 1, 3, heads=2, context_features=2, swap=True), ((4, 1, 2), (2,))
    )


def _spline_coupling(kind: str, kept: int, changed: int, own: bool = False, **options) -> f.SplineCoupling:
    spline = f.SplineTransform(bins=3, kind=kind)
    net = f.MLP(kept, changed * spline.parameters_per_element, (8,), context_features=CONTEXT)
    unconditional = f.RationalQuadraticSpline((kept,), bins=3) if own else None
    if own:
        nn.init.normal_(unconditional.raw)
    return f.SplineCoupling(net, spline, unconditional=unconditional, **options)


def _spline_coupling_of_images(kind: str, mask: Tensor | None) -> f.SplineCoupling:
    spline = f.SplineTransform(bins=3, kind=kind)
    inputs, outputs = (2, 1) if mask is None else (3, 3)
    net = nn.Conv2d(inputs, outputs * spline.parameters_per_element, 3, padding=1)
    return f.SplineCoupling(net, spline, mask=mask)


def _spline_couplings() -> None:
    forms = {
        "split": {"kept": 3, "changed": 2},
        "swapped": {"kept": 2, "changed": 3, "swap": True},
        "mask": {"kept": 5, "changed": 5, "mask": MASK},
        "unconditional": {"kept": 3, "changed": 2, "own": True},
        "unconditional, swapped": {"kept": 2, "changed": 3, "swap": True, "own": True},
    }
    for kind in ("rational-quadratic", "cubic"):
        for form, options in forms.items():
            make = functools.partial(_spline_coupling, kind, **options)
            VARIANTS[f"SplineCoupling, {kind}, {form}"] = Case(make, ((FEATURES,), (CONTEXT,)))
        for form, mask in {"split": None, "checkerboard": torch.tensor([[1.0, 0], [0, 1]])}.items():
            make = functools.partial(_spline_coupling_of_images, kind, mask)
            VARIANTS[f"SplineCoupling of images, {kind}, {form}"] = Case(make, (IMAGE,))


def _learned_spline(layer: type, tails: str) -> nn.Module:
    spline = layer((2, 2), bins=4, tails=tails)
    nn.init.normal_(spline.raw)
    return spline


def _learned_splines() -> None:
    for layer, tails in itertools.product(
        (f.CubicSpline, f.RationalQuadraticSpline), ("linear", "bounded", "circular")
    ):
        make = functools.partial(_learned_spline, layer, tails)
        as_input = functools.partial(_within, bound=2.5)
        size = make().parameters_per_element
        VARIANTS[f"{layer.__name__}, {tails}"] = Case(make, ((2, 2),), as_input=as_input)
        VARIANTS[f"{layer.__name__}, {tails}, given"] = Case(make, ((2, 2), (2, 2, size)), as_input=as_input)


def _within(x: Tensor, number: int, bound: float) -> Tensor:
    """Returns x in (-bound, bound), and other inputs as they are."""
    return x if number else bound * (2 * torch.special.ndtr(x) - 1)


def _autoregressive_layers() -> None:
    layers = (f.MaskedAffineAutoregressive, f.InverseAutoregressive)
    ways = ("exp", "sigmoid", "softplus", "bounded")
    for layer, way, order in itertools.product(layers, ways, ("natural", "reversed", [2, 0, 3, 1])):
        options = {"order": order, "parameterisation": way, "context_features": CONTEXT}
        make = functools.partial(layer, 4, (13, 11), activation="tanh", **options)
        VARIANTS[f"{layer.__name__}, {way}, {order}"] = Case(make, ((4,), (CONTEXT,)))


def _layers_of_any_shape() -> None:
    for shape in ((5,), (5, 2), (5, 3, 2)):
        VARIANTS[f"ActNorm, {shape}"] = Case(lambda: f.ActNorm(5), (shape,))
        for affine in (False, True):
            make = functools.partial(f.FlowBatchNorm, 5, affine=affine)
            VARIANTS[f"FlowBatchNorm, {shape}, affine={affine}"] = Case(make, (shape,))
        for lu, act_norm in itertools.product((True, False), repeat=2):
            make = functools.partial(f.InvertibleConv1x1, 5, lu=lu, act_norm=act_norm)
            VARIANTS[f"InvertibleConv1x1, {shape}, lu={lu}, act_norm={act_norm}"] = Case(make, (shape,))


_affine_couplings()
_mixture_couplings()
_spline_couplings()
_learned_splines()
_autoregressive_layers()
_layers_of_any_shape()
