from __future__ import annotations

import pytest

from fastgen.models import create_model
from tests.models.flows.laws import CONTEXT, FlowLaws


class TestSOS(FlowLaws):
    name = "sos"
    small = {"layers": 2, "hidden": (12,), "polynomials": 2, "degree": 1}
    cases = {
        "vector": small | {"event_shape": (3,)},
        "context": small | CONTEXT | {"event_shape": (2,), "norm": "none", "layers": 1},
    }
    plane = small | {"layers": 1}
    discrete = small | CONTEXT | {"event_shape": (1, 2, 2), "levels": 5, "layers": 1}
    noise = 0.1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"polynomials": 0}, "polynomials must be at least 1, got 0"),
        ({"degree": 0}, "degree must be at least 1, got 0"),
        ({"min_derivative": 1.0}, r"min_derivative must be greater than 0 and less than 1, got 1\.0"),
    ],
)
def test_a_wrong_config_is_named(config, words):
    with pytest.raises(ValueError, match=words):
        create_model("sos", preset="tiny", **config)
