from __future__ import annotations

import pytest

from fastgen.models import create_model
from tests.models.flows.laws import CONTEXT, FlowLaws


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own doing
class TestUMNN(FlowLaws):
    name = "umnn"
    small = {"layers": 2, "hidden": (12,), "embedding": 3, "integrand": (8, 8), "intervals": 20}
    cases = {
        "vector": small | {"event_shape": (3,), "norm": "act_norm"},
        "context": small | CONTEXT | {"event_shape": (2,), "layers": 1},
    }
    plane = small | {"layers": 1, "integrand": (5,), "intervals": 12}
    discrete = small | CONTEXT | {"event_shape": (1, 2, 2), "levels": 5, "layers": 1}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"embedding": 0}, "embedding must be at least 1, got 0"),
        ({"intervals": 0}, "intervals must be at least 1, got 0"),
        ({"integrand": ()}, r"hidden must have the width of one layer at least, each 1 or more, got \(\)"),
        ({"min_derivative": 0.0}, r"min_derivative must be greater than 0, got 0\.0"),
    ],
)
def test_a_wrong_config_is_named(config, words):
    with pytest.raises(ValueError, match=words):
        create_model("umnn", preset="tiny", **config)
