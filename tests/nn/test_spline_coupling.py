from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgen.nn import MLP, RationalQuadraticSpline, SplineCoupling, SplineTransform

KINDS = pytest.mark.parametrize("kind", ["rational-quadratic", "cubic"])
FORMS = {
    "split": {},
    "swapped": {"swap": True},
    "mask": {"mask": torch.tensor([1.0, 0, 1, 0, 1])},
    "unconditional": {"unconditional": RationalQuadraticSpline},
    "unconditional, swapped": {"unconditional": RationalQuadraticSpline, "swap": True},
}


class Convolution(nn.Conv2d):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)


def of_vectors(form: str, **options) -> SplineCoupling:
    torch.manual_seed(0)
    spline, form = SplineTransform(bins=3, **options), dict(FORMS[form])
    kept, changed = (2, 3) if form.get("swap") else (5, 5) if "mask" in form else (3, 2)
    if "unconditional" in form:
        form["unconditional"] = form["unconditional"]((kept,), bins=3)
        nn.init.normal_(form["unconditional"].raw)
    net = MLP(kept, changed * spline.parameters_per_element, (8,), context_features=2)
    return SplineCoupling(net, spline, **form).double()


@KINDS
def test_an_image_of_one_pixel_is_a_vector(kind):
    spline = SplineTransform(bins=3, kind=kind)
    net = Convolution(2, 2 * spline.parameters_per_element)
    linear = nn.Linear(2, 2 * spline.parameters_per_element)
    linear.weight.data, linear.bias.data = net.weight.data[:, :, 1, 1], net.bias.data
    x = torch.randn(5, 4)
    for image, vector in zip(
        SplineCoupling(net, spline)(x[:, :, None, None]), SplineCoupling(linear, spline)(x), strict=True
    ):
        torch.testing.assert_close(image.flatten(1) if image.dim() > 1 else image, vector)


@pytest.mark.parametrize("form", ["split", "swapped", "mask"])
def test_what_is_kept_stays_as_it_is(form):
    layer = of_vectors(form)
    x = torch.randn(4, 5, dtype=torch.float64)
    kept = {"split": [0, 1, 2], "swapped": [3, 4], "mask": [0, 2, 4]}[form]
    y, _ = layer(x, torch.randn(4, 2, dtype=torch.float64))
    assert torch.equal(y[:, kept], x[:, kept])
    assert (y != x).any()


@pytest.mark.parametrize("form", ["split", "mask"])
@pytest.mark.parametrize("tails", ["bounded", "circular"])
def test_values_outside_a_bounded_spline_are_refused_where_they_are_transformed(tails, form):
    layer = of_vectors(form, tails=tails, bound=(1.0, 2.0, -2.0, -1.0))
    x, context = 1 + torch.rand(4, 5, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    x[:, 0] = 7  # kept
    y, _ = layer(x, context)
    torch.testing.assert_close(layer.inverse(y, context)[0], x)
    for direction, values in ((layer.forward, x), (layer.inverse, y)):
        values[2, 3] = 0
        with pytest.raises(ValueError, match=r"x must be within .* for a spline without tails"):
            direction(values, context)


def test_a_compiled_layer_has_no_break():
    layer = of_vectors("unconditional")
    x, context = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(compiled(x, context), layer(x, context), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_wrong_arguments_are_named():
    spline = SplineTransform(bins=3)
    with pytest.raises(ValueError, match=r"net must return shape \(2, 8\), got \(2, 5\)"):
        SplineCoupling(nn.Linear(1, 5), spline)(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="swap must be False with a mask"):
        SplineCoupling(nn.Identity(), spline, mask=torch.ones(2), swap=True)
    with pytest.raises(ValueError, match="unconditional must be None with a mask"):
        SplineCoupling(nn.Identity(), spline, mask=torch.ones(2), unconditional=RationalQuadraticSpline((2,)))
    with pytest.raises(ValueError, match="to be split with C at least 2"):
        SplineCoupling(nn.Identity(), spline)(torch.zeros(2, 1))
