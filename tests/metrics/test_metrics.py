from __future__ import annotations

from math import log, sqrt

import pytest
import torch
from torch import nn

from fastgen.metrics import bits_per_dim, evaluate, histogram_baseline, summarise


def test_uniform_levels_cost_log2_levels_bits():
    count, dimensions, levels = 5, 7, 32
    scored = summarise(torch.full((count,), -dimensions * log(levels)), dimensions)
    assert scored.bits_per_dim == pytest.approx(5.0, rel=1e-6)  # float32 input
    assert scored.standard_error == 0
    assert scored.count == count


def test_standard_error_is_that_of_the_mean():
    values = torch.randn(50, dtype=torch.float64)
    scored = summarise(values, 3)
    assert scored.standard_error == pytest.approx(bits_per_dim(values.std().item() / sqrt(50), 3))
    assert scored.nats == pytest.approx(-values.mean().item())


def test_one_example_has_no_standard_error():
    scored = summarise(torch.tensor([-2.0]), 3, "nats", torch.tensor([-1.0]))
    assert (scored.standard_error, scored.divergence) == (None, None)
    assert str(scored) == "2.0000 nats (1 example)"


def test_summarise_refuses():
    with pytest.raises(ValueError, match="log_prob is empty"):
        summarise(torch.zeros(0), 1)
    with pytest.raises(ValueError, match="1 NaN of 2"):
        summarise(torch.tensor([0.0, float("nan")]), 1)


@pytest.mark.parametrize("per_position", [True, False])
def test_histogram_baseline_is_a_distribution(per_position):
    levels, train = 3, torch.randint(0, 2, (9, 2, 1), dtype=torch.uint8)
    grid = torch.cartesian_prod(torch.arange(levels), torch.arange(levels)).reshape(-1, 2, 1)
    total = sum(
        torch.tensor(-histogram_baseline(train, event[None], levels, per_position).nats, dtype=torch.float64).exp()
        for event in grid
    )
    assert total.item() == pytest.approx(1)


def test_histogram_baseline_counts_with_add_one_smoothing():
    train = torch.tensor([[0, 1], [0, 1], [0, 2]])
    scored = histogram_baseline(train, torch.tensor([[0, 2]]), 3)
    assert scored.nats == pytest.approx(-log(4 / 6) - log(2 / 6))
    pooled = histogram_baseline(train, torch.tensor([[0, 2]]), 3, per_position=False)
    assert pooled.nats == pytest.approx(-log(4 / 9) - log(2 / 9))


def test_histogram_baseline_refuses_another_shape():
    with pytest.raises(ValueError, match=r"held_out has the event shape \(3,\), train has \(2,\)"):
        histogram_baseline(torch.zeros(1, 2), torch.zeros(1, 3), 2)


def test_evaluate_is_in_eval_mode_and_restores_the_mode():
    class Model(nn.Module):
        def score(self, levels, context):
            assert not self.training
            assert not torch.is_grad_enabled()
            return -levels.sum(1).double()

    model = Model().train()
    model.frozen = torch.nn.BatchNorm1d(4).eval()
    scored = evaluate(model, [(torch.ones(2, 4), None), (torch.zeros(1, 4), None)], 4)
    assert model.training
    assert not model.frozen.training
    assert scored.nats == pytest.approx(8 / 3)
    assert scored.count == 3
