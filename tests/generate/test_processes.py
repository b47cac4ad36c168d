"""A process that forks: its children sample, drop the sampler and exit, whatever the parent's threads are doing."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import sys
import threading
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tests.generate.children import outcome
from tests.generate.small_networks import pointwise

pytestmark = [
    pytest.mark.needs_extension,
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_forked_child_samples_as_its_parent(threads):
    """faults/robustness_fork: the threads of the parent's pool do not exist in the child."""
    sampler = pointwise(threads=2)

    def sample():
        assert torch.equal(sampler.sample(5, seed=3, threads=threads), expected)

    expected = sampler.sample(5, seed=3)
    assert outcome(sample) == "done"
    assert torch.equal(sampler.sample(5, seed=3), expected)
    fresh = copy.deepcopy(sampler)
    assert outcome(partial(fresh.sample, 1)) == "done"  # before the parent has
    assert fresh.sample(1).shape == (1, 30)


def test_a_child_of_a_child_samples():
    sampler = pointwise(threads=2)
    expected = sampler.sample(2)

    def grandchild():
        assert torch.equal(sampler.sample(2), expected)

    def child():
        grandchild()
        assert outcome(grandchild) == "done"
        grandchild()

    assert outcome(child) == "done"


def test_a_generation_goes_on_in_the_child():
    sampler = pointwise(threads=2)
    expected, state = sampler.sample(2, seed=1), sampler.start(2, seed=1)
    sampler.advance(state, 11)

    def go_on():
        assert torch.equal(sampler.advance(state, 30).levels, expected)

    assert outcome(go_on) == "done"
    go_on()


def test_a_forked_child_drops_the_sampler_and_exits():
    """faults/robustness_fork: freeing the parent's threads does not wait for them."""
    held = [copy.deepcopy(pointwise(threads=2))]
    held[0].sample(1)

    def drop():
        held.clear()
        gc.collect()

    def leave():
        with pytest.raises(SystemExit):
            sys.exit(0)

    assert outcome(drop) == "done"
    assert outcome(leave) == "done"


def test_a_fork_while_another_thread_samples():
    """The parent's lock is held then, for ever as the child sees it."""
    sampler, stop = pointwise(threads=2), threading.Event()
    expected = sampler.sample(1, seed=2)

    def sample():
        assert torch.equal(sampler.sample(1, seed=2), expected)

    def sample_on():
        while not stop.is_set():
            sampler.sample(2000)

    other = threading.Thread(target=sample_on)
    other.start()
    try:
        for _ in range(3):
            assert outcome(sample) == "done"
    finally:
        stop.set()
        other.join()


class Sampled(Dataset):
    def __init__(self, sampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        return self.sampler.sample(1, seed=index)[0]


def test_workers_of_a_data_loader_sample():
    sampler = pointwise(threads=2)
    expected = torch.cat([sampler.sample(1, seed=index) for index in range(6)])
    loader = DataLoader(Sampled(sampler), 3, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert torch.equal(torch.cat(list(loader)), expected)


def test_a_sampler_is_sent_to_a_pool():
    sampler = pointwise(threads=2)
    expected = [sampler.sample(1, seed) for seed in range(4)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map_async(partial(_sample, sampler), range(4)).get(60)
    assert all(torch.equal(torch.tensor(one), other) for one, other in zip(found, expected, strict=True))


def _sample(sampler, seed: int) -> list:
    return sampler.sample(1, seed).tolist()
