from __future__ import annotations

import pytest
import torch

from fastgen.data import DataConfig, load
from fastgen.metrics import gaussian_baseline
from fastgen.models import create_model
from fastgen.models.flows import FlowModel
from fastgen.nn import ContinuousFlow
from tests.models.flows.laws import CONTEXT, FlowLaws


class TestFFJORD(FlowLaws):
    name = "ffjord"
    image = {"event_shape": (1, 2, 2), "levels": 17, "hidden": (4,), "activation": "softplus", "time": "concat"}
    cases = {
        "vector": {"event_shape": (3,), "hidden": (6, 5, 4), "flows": 2, "norm": "act"},
        "image": image | {"norm": "batch"},
        "context": CONTEXT | {"event_shape": (2,), "hidden": (5,)},
    }
    plane = {"hidden": (8,), "solver": "rk4", "step_size": 0.1}
    discrete = image | CONTEXT | {"solver": "rk4", "step_size": 0.25}

    def make(self, config: dict, dtype: torch.dtype = torch.float64) -> FlowModel:
        """Solved as precisely as the dtype allows, with exact traces."""
        tolerance = 1e-9 if dtype == torch.float64 else 1e-5
        solved = {"trace": "exact", "solver": "dopri8", "rtol": tolerance, "atol": tolerance}
        return super().make(solved | config, dtype)

    def test_compiles_without_a_break(self, case):
        self.check_compiled(case, "aot_eager")

    def check_compiled(self, case, backend):
        """With steps of a fixed size; what an adaptive solver does depends on the numbers, and breaks the graph."""
        model = self.make(self.cases[case] | {"flows": 1, "solver": "euler", "step_size": 0.5})
        self.check_model_compiled(model, backend)


FIXED = {"solver": "rk4", "step_size": 0.125}


def test_a_seed_decides_an_estimate():
    small = {"event_shape": (3,), "hidden": (8,)} | FIXED
    model = create_model("ffjord", **small, evaluation_trace="rademacher").double().eval()
    x = torch.randn(1, 3, dtype=torch.float64).expand(2000, 3)
    first, again, other = (model.log_prob(x, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first != other).any()
    exact = create_model("ffjord", **small).double().eval()
    exact.load_state_dict(model.state_dict())
    assert (first.mean() - exact.log_prob(x[:1])).abs() <= 5 * first.std() / len(first) ** 0.5


def test_the_trace_in_eval_mode_is_exact_for_small_vectors_alone():
    def kinds(**config) -> set[str]:
        model = create_model("ffjord", "tiny", **config)
        return {layer.evaluation_trace for layer in model.modules() if isinstance(layer, ContinuousFlow)}

    assert kinds(event_shape=(64,)) == {"exact"}
    assert kinds(event_shape=(65,)) == kinds(event_shape=(1, 2, 2)) == {"rademacher"}
    assert kinds(event_shape=(2,), evaluation_trace="gaussian") == {"gaussian"}


def test_the_loss_has_the_weighted_regularizers_in_training():
    model = create_model("ffjord", event_shape=(3,), hidden=(8,), flows=2, kinetic=0.5, jacobian=2.0, **FIXED)
    x = torch.randn(6, 3)
    torch.manual_seed(0)
    loss = model.loss(x)
    first, second = (layer.penalties for layer in model.modules() if isinstance(layer, ContinuousFlow))
    torch.manual_seed(0)
    likelihood = -model.log_prob(x).mean()
    added = sum(0.5 * each["kinetic"].mean() + 2 * each["jacobian"].mean() for each in (first, second))
    torch.testing.assert_close(loss, likelihood + added)
    loss.backward()
    assert model.eval().loss(x) == -model.log_prob(x).mean()


def test_the_progress_is_the_evaluations_of_all_fields():
    model = create_model("ffjord", event_shape=(3,), hidden=(8,), flows=2, end_time=0.5, **FIXED)  # 4 steps of 4 each
    loss = model.loss(torch.randn(6, 3))
    assert model.progress() == {"evaluations": 32, "backward evaluations": 0}
    loss.backward()
    assert model.progress() == {"evaluations": 32, "backward evaluations": 32}


def test_a_short_run_on_two_moons_beats_a_gaussian():
    data = load(DataConfig("two_moons", examples=5000))
    (train, _), (held_out, _) = (data.splits[name].batch(torch.arange(2000)) for name in ("train", "test"))
    torch.manual_seed(0)
    model = create_model("ffjord", "tiny", solver="rk4", step_size=0.25)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(120):
        optimizer.zero_grad()
        model.loss(train[step * 128 % 1920 :][:128]).backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval().log_prob(held_out).mean()
    assert -found < gaussian_baseline(train, held_out).evaluation.value


def test_the_preset_for_images_is_of_every_scale():
    model = create_model("ffjord", preset="image", hidden=(2,))
    fields = [layer.field for layer in model.modules() if isinstance(layer, ContinuousFlow)]
    assert [field.sizes[0] for field in fields] == [3, 3, 12, 12, 6, 6, 24, 24, 12, 12, 48, 48, 24, 24]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"flows": 0}, "flows must be at least 1, got 0"),
        ({"hidden": ()}, r"hidden must be a tuple of one width at least, each 1 or more, got \(\)"),
        ({"hidden": 8}, r"hidden must be of type tuple\[int, \.\.\.\], got 8"),
        ({"event_shape": (3, 3)}, r"event_shape must be \(features,\) or \(channels, height, width\), got \(3, 3\)"),
        ({"event_shape": (1, 6, 6), "scales": 3}, r"event_shape must have a height and a width .*, got \(1, 6, 6\)"),
        ({"kinetic": -1.0}, r"kinetic must be at least 0, got -1\.0"),
        ({"norm": "layer"}, "norm must be one of 'none', 'act', 'batch', got 'layer'"),
        ({"solver": "rk4"}, "step_size must be greater than 0, and finite, for solver 'rk4', got None"),
        ({"trace": "sum"}, r"trace must be one of 'rademacher', .*, got 'sum'"),
        ({"activation": "relu"}, "activation must be one of 'tanh', 'softplus', 'swish', 'elu', got 'relu'"),
        ({"time": "late"}, "time must be one of 'none', 'concat', 'concat-squash', got 'late'"),
    ],
)
def test_a_wrong_config_is_named(given, words):
    with pytest.raises(ValueError, match=words):
        create_model("ffjord", **given)


def test_a_model_says_which_trace_estimates_its_likelihood():
    small = {"event_shape": (2,), "hidden": (4,)}
    assert create_model("ffjord", **small).estimates() == ()
    estimated = create_model("ffjord", **small, evaluation_trace="hutch++", probes=3)
    assert estimated.estimates() == ("traces by 3 hutch++ probes",)
