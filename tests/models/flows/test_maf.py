from __future__ import annotations

import pytest
import torch

from fastgen.models import create_model
from tests.models.flows.laws import CONTEXT, FlowLaws


class TestMAF(FlowLaws):
    name = "maf"
    small = {"layers": 2, "hidden": (13, 11)}
    cases = {
        "vector": small | {"event_shape": (5,)},
        "image": small
        | {"event_shape": (1, 2, 3), "levels": 4, "hidden_degrees": "random", "activation": "elu", "norm": "act_norm"},
        "context": small | CONTEXT | {"event_shape": (4,), "norm": "none"},
    }
    plane = small
    discrete = small | CONTEXT | {"event_shape": (1, 3, 3), "levels": 5}

    def test_a_layer_depends_on_the_numbers_before_and_the_next_on_those_after(self):
        model = self.make({"event_shape": (5,), "layers": 2, "hidden": (13, 11), "norm": "none"})
        x, _ = self.data(model, 1)
        layers = list(model.flow.layers)[1:]
        first, second = (torch.autograd.functional.jacobian(lambda x, f=f: f(x)[0], x)[0, :, 0] for f in layers)
        assert (first.triu(1) == 0).all()
        assert (second.tril(-1) == 0).all()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"levels": 4, "alpha": 0.5}, "alpha must be greater than 0 and less than 0.5, got 0.5"),
        ({"norm": "layer_norm"}, "norm must be one of 'batch_norm', 'act_norm', 'none', got 'layer_norm'"),
        ({"hidden": ()}, r"hidden must have the width of one layer at least, each 1 or more, got \(\)"),
        ({"activation": "gelu"}, "activation must be one of 'relu', 'tanh', 'sigmoid', 'elu', got 'gelu'"),
        ({"hidden_degrees": "cyclic"}, "hidden_degrees must be 'sequential' or 'random', got 'cyclic'"),
    ],
)
def test_a_wrong_config_is_named(config, words):
    with pytest.raises(ValueError, match=words):
        create_model("maf", preset="tiny", **config)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_named(label):
    model = create_model("maf", preset="tiny", event_shape=(2,), classes=3).eval()
    labels = torch.tensor([0, label])
    for function in (model.log_prob, model.inverse):
        with pytest.raises(ValueError, match="context 'class' must be from 0 to 2"):
            function(torch.zeros(2, 2), labels)
