from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastgen.training.order import DataOrder, seed_step


@given(count=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 3))
def test_every_example_occurs_once_an_epoch(count, batch_size, seed):
    order = DataOrder(count, batch_size, seed)
    steps = -(-3 * count // batch_size)
    stream = torch.cat([order.batch(step) for step in range(steps)])[: 3 * count]
    assert (stream.reshape(3, count).sort(1).values == torch.arange(count)).all()


@given(count=st.integers(1, 40), batch_size=st.integers(1, 50), step=st.integers(0, 100))
def test_a_batch_depends_on_seed_and_step_alone(count, batch_size, step):
    walked = DataOrder(count, batch_size, 5)
    for earlier in range(step):
        walked.batch(earlier)
    assert torch.equal(walked.batch(step), DataOrder(count, batch_size, 5).batch(step))


def test_epochs_and_seeds_differ():
    epochs = [DataOrder(100, 100, seed).batch(step).tolist() for seed in (0, 1) for step in (0, 1)]
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_dropout_noise_depends_on_seed_step_and_rank_alone():
    def noise(*key: int) -> float:
        seed_step(*key)
        return torch.rand(()).item()

    values = {key: noise(*key) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}
    assert len(set(values.values())) == 4
    torch.rand(7)
    assert all(noise(*key) == pytest.approx(value, abs=0) for key, value in values.items())
