from __future__ import annotations

import pytest
import torch

from fastgen.models import create_model
from fastgen.nn.posterior.sylvester import KINDS
from tests.models.flows.laws import CONTEXT, FlowLaws


class TestSylvesterFlow(FlowLaws):
    name = "sylvester"
    small = {"length": 2}
    cases = {
        "orthogonal": {"event_shape": (4,), "rank": 2, "length": 1},
        "context": small | CONTEXT | {"event_shape": (3,), "kind": "householder", "reflections": 2},
    }
    plane = small | {"kind": "triangular"}
    discrete = {"event_shape": (1, 2, 2), "levels": 5, "length": 1} | CONTEXT


@pytest.mark.parametrize("kind", KINDS)
def test_turned_round_the_samples_are_the_closed_form(kind):
    torch.manual_seed(0)
    model = create_model("sylvester", event_shape=(3,), length=1, kind=kind, closed_form="inverse").double()
    z = torch.randn(5, 3, dtype=torch.float64)
    x, log_det = model.inverse(z)
    torch.testing.assert_close(model.flow.layers[0].layer(model.flow.layers[1].layer(z)[0])[0], x)
    back, back_log_det = model(x)
    torch.testing.assert_close((back, back_log_det), (z, -log_det))


def test_triangular_layers_take_the_identity_and_the_reversal_in_turn():
    model = create_model("sylvester", event_shape=(3,), length=4, kind="triangular")
    assert [layer.reverse for layer in model.flow.layers[:4]] == [False, True, False, True]


def test_configs_that_cannot_be_used_are_refused():
    with pytest.raises(ValueError, match=r"kind must be one of 'orthogonal'.*, got 'dense'"):
        create_model("sylvester", kind="dense")
    for wrong in ({"rank": 0}, {"rank": 3}, {"rank": 1, "kind": "triangular"}):
        with pytest.raises(ValueError, match="rank must be None, or from 1 to 2 for kind 'orthogonal', got"):
            create_model("sylvester", preset="tiny", **wrong)
    with pytest.raises(ValueError, match="reflections must be at least 1, got 0"):
        create_model("sylvester", reflections=0)
