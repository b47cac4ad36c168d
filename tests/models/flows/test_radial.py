from __future__ import annotations

import pytest
import torch

from fastgen.models import create_model
from tests.models.flows.laws import CONTEXT, FlowLaws


class TestRadialFlow(FlowLaws):
    name = "radial"
    small = {"length": 3}
    cases = {
        "vector": small | {"event_shape": (4,)},
        "sampled": small | {"event_shape": (3,), "closed_form": "inverse"},
        "context": small | CONTEXT | {"event_shape": (3,)},
    }
    plane = small
    discrete = {"event_shape": (1, 3, 3), "levels": 5, "length": 2} | CONTEXT


def test_turned_round_it_is_the_same_map():
    configs = ({"length": 3, "event_shape": (3,), "closed_form": direction} for direction in ("forward", "inverse"))
    forward, inverse = (create_model("radial", **config).double() for config in configs)
    for mine, other in zip(inverse.parameters(), forward.parameters(), strict=True):
        other.data.copy_(mine)
    x = torch.randn(5, 3, dtype=torch.float64)
    for layer, turned in zip(forward.flow.layers, inverse.flow.layers, strict=True):
        torch.testing.assert_close(layer(x), turned.inverse(x))


def test_configs_that_cannot_be_used_are_refused():
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        create_model("radial", length=0)
    with pytest.raises(ValueError, match="closed_form must be one of 'forward', 'inverse', got 'log_prob'"):
        create_model("radial", closed_form="log_prob")
