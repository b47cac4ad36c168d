from __future__ import annotations

import pytest

from fastgen.models import create_model
from tests.models.flows.laws import CONTEXT, FlowLaws


class TestNAF(FlowLaws):
    name = "naf"
    small = {"layers": 2, "hidden": (12,), "sigmoids": 3}
    cases = {
        "dsf": small | {"event_shape": (3,), "transformer": "dsf", "depth": 2},
        "ddsf with context": small | CONTEXT | {"event_shape": (2,), "norm": "none", "layers": 1, "depth": 2},
    }
    plane = small | {"layers": 1}
    discrete = small | CONTEXT | {"event_shape": (1, 2, 2), "levels": 5, "layers": 1}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"sigmoids": 0}, "sigmoids must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"transformer": "affine"}, "transformer must be one of 'dsf', 'ddsf', got 'affine'"),
        ({"norm": "layer_norm"}, "norm must be one of 'batch_norm', 'act_norm', 'none', got 'layer_norm'"),
        ({"hidden": ()}, r"hidden must have the width of one layer at least, each 1 or more, got \(\)"),
        ({"activation": "gelu"}, "activation must be one of 'relu', 'tanh', 'sigmoid', 'elu', got 'gelu'"),
    ],
)
def test_a_wrong_config_is_named(config, words):
    with pytest.raises(ValueError, match=words):
        create_model("naf", preset="tiny", **config)
