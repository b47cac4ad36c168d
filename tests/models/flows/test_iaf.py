from __future__ import annotations

import pytest
import torch

from fastgen.models import create_model
from tests.models.flows.laws import CONTEXT, FlowLaws


class TestIAF(FlowLaws):
    name = "iaf"
    small = {"layers": 2, "hidden": (13, 11)}
    cases = {
        "vector": small | {"event_shape": (5,)},
        "image": small | {"event_shape": (1, 2, 3), "levels": 4, "parameterisation": "bounded"},
        "context": small | CONTEXT | {"event_shape": (4,)},
    }
    plane = small
    discrete = small | CONTEXT | {"event_shape": (1, 3, 3), "levels": 5}

    def test_the_density_of_a_sample_is_known_when_it_is_drawn(self):
        model = self.make(self.cases["vector"])
        x, log_prob = model.sample(7, seed=2, return_log_prob=True)
        with torch.no_grad():
            torch.testing.assert_close(model.log_prob(x), log_prob)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"min_scale": -1.0}, r"min_scale must be at least 0, got -1\.0"),
        (
            {"parameterisation": "tanh"},
            "parameterisation must be one of 'exp', 'sigmoid', 'softplus', 'bounded', got 'tanh'",
        ),
        ({"activation": "gelu"}, "activation must be one of 'relu', 'tanh', 'sigmoid', 'elu', got 'gelu'"),
    ],
)
def test_a_wrong_config_is_named(config, words):
    with pytest.raises(ValueError, match=words):
        create_model("iaf", preset="tiny", **config)
