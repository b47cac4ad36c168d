"""Samplers and states are copied and pickled, alone and inside the modules that hold them."""

from __future__ import annotations

import copy
import gc
import pickle
from dataclasses import replace

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from fastgen.generate.errors import CompileError
from tests.generate.small_networks import Pointwise, causal, pointwise


def pickled(value):
    return pickle.loads(pickle.dumps(value))


COPIES = pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])


@COPIES
@pytest.mark.parametrize("make", [pointwise, causal])
def test_a_copy_samples_alike(make, copied):
    """faults/robustness_deepcopy_sampler_corrupts_heap"""
    sampler = copy.deepcopy(make())
    context = None if sampler.request.layout is None else torch.tensor([[1.0, -2.0]])
    expected = sampler.sample(2, seed=3, context=context, return_log_prob=True)
    copies = [copied(sampler) for _ in range(3)]
    copies.append(copied(copies[0]))
    del sampler
    gc.collect()
    for one in copies:
        found = one.sample(2, seed=3, context=context, return_log_prob=True)
        assert all(map(torch.equal, found, expected))
        assert torch.equal(one.sample_naive(2, seed=3, context=context), expected[0])


@COPIES
def test_a_copy_does_not_follow_the_original(copied):
    sampler = copy.deepcopy(pointwise())
    before, other = sampler.sample(2), copied(sampler)
    with torch.no_grad():
        sampler.module.head.weight.mul_(-3)
    after = sampler.refresh().sample(2)
    assert not torch.equal(before, after)
    assert torch.equal(other.sample(2), before)
    assert (other.module is sampler.module) == (copied is copy.copy)


def test_refresh_takes_the_parameters_of_the_copy():
    sampler = copy.deepcopy(pointwise())
    shallow, deep = copy.copy(sampler), copy.deepcopy(sampler)
    before = sampler.sample(2)
    with torch.no_grad():
        deep.module.head.weight.mul_(-3)
    assert torch.equal(shallow.refresh().sample(2), before)
    assert not torch.equal(deep.refresh().sample(2), before)
    assert torch.equal(deep.sample(2), deep.sample_naive(2))
    with pytest.raises(CompileError, match="came from a pickle, which holds no analysis"):
        pickled(sampler).refresh()


class Holder(torch.nn.Module):
    """A model that keeps its sampler as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Pointwise()
        self.sampler = copy.deepcopy(pointwise())
        self.sampler.request = replace(self.sampler.request, module=self.network)
        self.sampler.refresh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)


def test_a_module_that_holds_its_sampler_is_averaged_copied_and_pickled(tmp_path):
    model = Holder()
    before = model.sampler.sample(2)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    averaged = AveragedModel(model, multi_avg_fn=None)
    for other in (averaged.module, copy.deepcopy(model), pickled(model), loaded):
        assert other.sampler.module is other.network
        assert other.network is not model.network
        assert torch.equal(other.sampler.sample(2), before)
    averaged.update_parameters(model)
    with torch.no_grad():
        model.network.head.weight.mul_(-3)
    averaged.update_parameters(model)
    sampler = averaged.module.sampler.refresh()
    assert torch.equal(sampler.sample(2), sampler.sample_naive(2))
    assert not torch.equal(sampler.sample(2), before)
    assert torch.equal(model.sampler.sample(2), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copied_state_goes_on_alone(copied):
    sampler = causal()
    context = torch.tensor([[0.5, 1.0], [2.0, 0.0]])
    expected, expected_log_prob = sampler.sample(2, seed=4, context=context, return_log_prob=True)
    state = sampler.advance(sampler.start(2, seed=4, context=context, log_prob=True), 13)
    other = copied(state)
    assert (other.step, other.batch) == (13, 2)
    assert (other.sampler is sampler) == (copied is copy.deepcopy)
    for one in (state, other):
        one.sampler.advance(one, 40)
        assert torch.equal(one.levels, expected)
        assert torch.equal(one.run.log_prob, expected_log_prob)


def test_a_sampler_and_its_states_are_copied_together():
    sampler = pointwise()
    state = sampler.advance(sampler.start(1), 7)
    new_sampler, new_state = copy.deepcopy([sampler, state])
    assert new_state.sampler is new_sampler
    assert torch.equal(new_sampler.advance(new_state, 30).levels, sampler.sample(1))


@pytest.mark.needs_extension
def test_a_machine_alone_is_not_copied():
    from fastgen.generate.machines.cpu import CpuMachine

    machine = pointwise().machine
    assert isinstance(machine, CpuMachine)
    for copied in (copy.deepcopy, pickled):
        with pytest.raises(TypeError, match="cannot pickle"):
            copied(machine)
