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
        ({"layers": 0}, "layers=0"),
        ({"sigmoids": 0}, "sigmoids=0"),
        ({"depth": 0}, "depth=0"),
        ({"transformer": "affine"}, "transformer is 'affine'"),
        ({"norm": "layer_norm"}, "norm is 'layer_norm'"),
        ({"hidden": ()}, r"hidden is \(\)"),
        ({"activation": "gelu"}, "activation is 'gelu'"),
    ],
)
def test_a_wrong_config_is_named(config, words):
    with pytest.raises(ValueError, match=words):
        create_model("naf", preset="tiny", **config)
