from __future__ import annotations

import pytest
import torch

from fastgen.models import create_model
from fastgen.models.flows import FlowPlusPlus, FlowPlusPlusConfig
from fastgen.nn import FlowPlusPlusStep, LogisticMixtureCoupling, VariationalDequantization
from tests.models.flows.laws import CONTEXT, FlowLaws


class TestFlowPlusPlus(FlowLaws):
    name = "flow_plus_plus"
    noise = 0.05
    small = {"event_shape": (1, 2, 4), "filters": 8, "heads": 2, "components": 2, "couplings": (1, 1, 1)}
    cases = {
        "real": small | {"levels": 0},
        "image": small | {"dequantization": "uniform", "blocks": 2, "couplings": (2, 0, 0)},
        "context": small | CONTEXT | {"levels": 0, "couplings": (0, 0, 1)},
    }
    discrete = small | CONTEXT | {"dequantization_filters": 4, "dequantization_features": 4}

    def test_compiles_without_a_break(self):
        """Of the cases, one: to trace a coupling takes seconds."""
        self.check_compiled("context", "aot_eager")

    @torch.no_grad()
    def test_every_condition_changes_the_bound(self):
        model = self.make(self.discrete)
        levels, noise = torch.randint(0, 17, (4, 1, 2, 4)), torch.rand(4, 1, 2, 4, dtype=torch.float64)
        _, context = self.data(model, 4)
        log_q = model.dequantization(levels, noise, model.encode(context, 4))[1]
        for name, value in context.items():
            changed = context | {name: (value + 1) % 3 if name == "class" else value + 1}
            assert (model.dequantization(levels, noise, model.encode(changed, 4))[1] != log_q).all()

    @torch.no_grad()
    def test_dropout_acts_in_training_alone(self):
        model = create_model(self.name, preset="tiny", **self.small | {"dropout": 0.5, "dequantization": "uniform"})
        x = torch.rand(2, 1, 2, 4)
        model.log_prob(x)
        assert (model.log_prob(x) != model.log_prob(x)).all()
        model.eval()
        assert torch.equal(model.log_prob(x), model.log_prob(x))


def test_the_networks_for_cifar10_have_as_many_parameters_as_the_authors():
    """Their code says 31,443,440, of which each step has a scale and a bias for all numbers and two C x C matrices."""
    with torch.device("meta"):
        model = FlowPlusPlus()
    nets = [module.net for module in model.modules() if isinstance(module, LogisticMixtureCoupling)]
    parts = [*nets, model.dequantization.features]
    found = sum(parameter.numel() for part in parts for parameter in part.parameters())
    matrices = 2 * (8 * 3**2 + 2 * 6**2 + 3 * 12**2)
    assert found == 31_443_440 - 13 * 2 * 3 * 32 * 32 - matrices


def test_the_layers_are_those_of_the_paper():
    model = create_model("flow_plus_plus", preset="tiny", couplings=(4, 2, 3))
    names = [type(layer).__name__ for layer in model.flow.layers]
    step, split, back = "FlowPlusPlusStep", "CheckerboardSplit", "Inverse"
    wanted = ["Logit", split, *[step] * 4, back, "Squeeze2d", *[step] * 2, split, *[step] * 3, back, "Flatten"]
    assert names == wanted
    assert isinstance(model.dequantization, VariationalDequantization)
    assert create_model("flow_plus_plus", preset="tiny", dequantization="uniform").dequantization is None


def test_couplings_take_turns():
    """What one coupling of a stage keeps, the next transforms."""
    model = create_model("flow_plus_plus", preset="tiny", couplings=(4, 2, 3))
    for layers, counts in ((model.flow.layers, (4, 2, 3)), (model.dequantization.flow.layers, (2,))):
        swaps = [layer.layers[1].swap for layer in layers if isinstance(layer, FlowPlusPlusStep)]
        assert swaps == [i % 2 == 1 for count in counts for i in range(count)]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"event_shape": (8,)}, r"event_shape must be \(channels, height, width\) .*, got \(8,\)"),
        ({"event_shape": (1, 8, 6)}, "even height and a width that 4 divides"),
        ({"event_shape": (1, 7, 8)}, "even height and a width that 4 divides"),
        ({"couplings": (4, 2)}, "couplings must be three numbers of 0 or more, not all 0"),
        ({"couplings": (0, 0, 0)}, "couplings must be three numbers of 0 or more, not all 0"),
        ({"alpha": 0.5}, r"alpha must be greater than 0 and less than 0\.5, got 0\.5"),
        ({"dequantization": "none"}, "dequantization must be one of 'variational', 'uniform', got 'none'"),
        ({"components": 0}, "components must be at least 1, got 0"),
        ({"filters": 30}, "filters must be a multiple of heads=4, got 30"),
        ({"dequantization_filters": 6}, "dequantization_filters must be a multiple of dequantization_heads=4, got 6"),
        ({"dropout": 1.0}, r"dropout must be at least 0 and less than 1, got 1\.0"),
    ],
)
def test_a_bad_config_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        FlowPlusPlusConfig(**fields)
