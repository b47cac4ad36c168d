from __future__ import annotations

import pytest
import torch

from fastgen.models import create_model
from tests.models.flows.laws import CONTEXT, FlowLaws

SMALL = {"steps": 2, "bins": 3, "width": 12, "blocks": 1}


class TestNeuralSplineCoupling(FlowLaws):
    name = "nsf_coupling"
    noise = 0.05
    cases = {
        "vector": SMALL | CONTEXT | {"event_shape": (5,)},
        "image": SMALL | CONTEXT | {"event_shape": (1, 4, 4), "scales": 2, "levels": 4, "width": 4, "steps": 1},
    }
    plane = SMALL
    discrete = SMALL | {"event_shape": (3, 4, 4), "scales": 2, "levels": 5}

    def test_every_scale_is_done_with_half_of_the_channels(self):
        model = self.make({"event_shape": (3, 8, 8), "levels": 0, "scales": 3} | SMALL)
        assert model.flow.shapes == [(12, 4, 4), (24, 2, 2), (48, 1, 1)]


class TestNeuralSplineAutoregressive(FlowLaws):
    name = "nsf_autoregressive"
    noise = 0.05
    cases = {
        "vector": SMALL | CONTEXT | {"event_shape": (5,), "steps": 1},
        "image": SMALL | {"event_shape": (1, 2, 2), "levels": 4, "transform": "cubic"},
    }
    plane = SMALL
    discrete = SMALL | {"event_shape": (1, 3, 2), "levels": 5}


class TestCubicSplineFlow(FlowLaws):
    name = "cubic_spline"
    noise = 0.05
    cases = {"vector": SMALL | {"event_shape": (4,), "unconditional": True, "steps": 1}}
    plane = SMALL

    def test_its_splines_are_cubic(self):
        model = create_model("cubic_spline", preset="tiny")
        assert {layer.spline.kind for layer in model.flow.layers if hasattr(layer, "spline")} == {"cubic"}


@pytest.mark.parametrize("name", ["nsf_coupling", "nsf_autoregressive"])
def test_training_with_dropout_is_random_and_evaluation_is_not(name):
    model, x = create_model(name, preset="tiny", dropout=0.5), torch.randn(8, 2)
    assert not torch.equal(model.log_prob(x), model.log_prob(x))
    model.eval()
    assert torch.equal(model.log_prob(x), model.log_prob(x))


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        (
            "nsf_coupling",
            {"transform": "linear"},
            "transform must be one of 'rational-quadratic', 'cubic', got 'linear'",
        ),
        ("nsf_coupling", {"steps": 0}, "steps must be at least 1, got 0"),
        ("nsf_coupling", {"bins": 0}, "bins must be at least 1, got 0"),
        ("nsf_coupling", {"bound": 0.0}, r"bound must be greater than 0, got 0\.0"),
        ("nsf_coupling", {"dropout": 1.0}, r"dropout must be at least 0 and less than 1, got 1\.0"),
        ("nsf_coupling", {"event_shape": (1,)}, r"event_shape must have 2 numbers at least, to be split, got \(1,\)"),
        (
            "nsf_coupling",
            {"event_shape": (3, 8, 12)},
            r"event_shape must have a height and a width .*, got \(3, 8, 12\)",
        ),
        ("nsf_coupling", {"event_shape": (3, 8, 8), "scales": 0}, "scales must be at least 1, got 0"),
        ("nsf_autoregressive", {"blocks": -1}, "blocks must be at least 0, got -1"),
        ("nsf_autoregressive", {"width": 0}, "width must be at least 1, got 0"),
    ],
)
def test_a_wrong_config_is_named(name, config, words):
    with pytest.raises(ValueError, match=words):
        create_model(name, preset="tiny", **config)
