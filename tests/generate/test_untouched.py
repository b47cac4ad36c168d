"""Compiling leaves the user's module exactly as it was."""

from __future__ import annotations

import random
from collections import deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from fastgen.generate import heads
from fastgen.generate.frontend.untouched import untouched
from tests.generate.compiled import FAST
from tests.generate.writing_networks import LEVELS, WRITING, Network


class Caches(nn.Module):
    """Keeps all kinds of things from its first call on, among them a pad of that call's batch."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.output = nn.Embedding(LEVELS, 8), nn.Linear(8, LEVELS)
        self.dropout, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(8)
        self.pad, self.calls, self.shapes, self.cache, self.recent = None, 0, [], {"first": None}, deque(maxlen=2)
        self.seen: set[tuple[int, ...]] = set()
        self.notes = type("Notes", (), {})()
        self.notes.history = []
        self.seen_mean = torch.zeros(())
        self.generator = torch.Generator().manual_seed(4)
        self.output.weight.requires_grad_(False)
        self.output.weight.grad = torch.ones(LEVELS, 8)
        self.norm.eval()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.pad is None:
            self.pad = torch.zeros(x.shape[0], 1, 8)
            self.register_buffer("made", torch.ones(8))
            self.table.register_forward_hook(lambda module, inputs, output: output * 1.0)
        self.calls += 1
        self.shapes.append(x.shape)
        self.cache[len(self.shapes)] = self.recent
        self.recent.append(self.calls)
        self.seen.add(tuple(x.shape))
        self.notes.history.append(self.calls)
        self.notes.last = self.calls
        random.random()
        np.random.rand()  # noqa: NPY002
        h = self.table(x) + self.pad + self.made
        self.seen_mean += h.mean().detach()
        self.mean.mul_(0.9).add_(h.detach().mean((0, 1)))
        h = self.norm(h.transpose(1, 2)).transpose(1, 2)
        return self.output(self.dropout(h)).transpose(1, 2)


def attributes(module: nn.Module) -> dict[str, object]:
    """Every attribute of every submodule, containers and tensors copied."""
    found = {}
    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            found[f"{prefix}.{name}"] = value.copy() if isinstance(value, (dict, list, set, deque)) else value
    return found


def random_states() -> list:
    numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002
    return [torch.get_rng_state().tolist(), numpy_state, random.getstate()]


def tensors(module: nn.Module) -> dict[str, tuple]:
    """Of every tensor: the object, its place, its value, whether it has a gradient, and that gradient."""
    return {
        name: (
            id(value),
            value.data_ptr(),
            value.detach().clone(),
            value.requires_grad,
            value.grad if value.is_leaf else None,
        )
        for name, value in attributes_and_state(module)
        if isinstance(value, Tensor)
    }


def attributes_and_state(module: nn.Module):
    for prefix, part in module.named_modules():
        for name, value in (vars(part) | part._parameters | part._buffers).items():
            yield f"{prefix}.{name}", value


def assert_untouched(module: nn.Module, act) -> None:
    before, states, held = attributes(module), random_states(), tensors(module)
    act()
    after = attributes(module)
    assert after.keys() == before.keys()
    for name, value in before.items():
        if isinstance(value, (dict, list, set, deque)):
            assert list(after[name]) == list(value), name
            if isinstance(value, dict):
                assert all(after[name][key] is value[key] for key in value), name
        else:
            assert after[name] is value, name
    assert random_states() == states
    for name, (identity, place, value, requires_grad, grad) in tensors(module).items():
        assert (identity, place, requires_grad) == (held[name][0], held[name][1], held[name][3]), name
        assert torch.equal(value, held[name][2]), name
        assert grad is held[name][4], name


def compile_caching(module: nn.Module, length: int = 16) -> fastgen.Sampler:
    return fastgen.Sampler(module, (length,), heads.Categorical(LEVELS), order="time", predicts="next", machine=FAST)


@pytest.mark.parametrize("length", [16, 90])
def test_what_forward_caches_is_not_left_behind(length):
    """Fault generation_20 (a): a pad of the batch that compiling used broke the module for any other batch."""
    torch.manual_seed(0)
    module = Caches().train()
    module.norm.eval()
    module.generator.get_state()
    assert_untouched(module, lambda: compile_caching(module, length))
    assert module.notes.history == []
    assert not hasattr(module.notes, "last")
    module(torch.zeros(3, length, dtype=torch.int64))


def test_a_sampler_of_a_module_that_caches_is_exact():
    torch.manual_seed(0)
    module = Caches()
    sampler = compile_caching(module)
    assert torch.equal(sampler.sample(5), sampler.sample_naive(5))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("name", WRITING)
@pytest.mark.parametrize("called", [False, True])
def test_a_module_that_writes_to_itself_is_left_as_it_was(name, called):
    torch.manual_seed(1)
    module = Network(WRITING[name]())
    if called:
        module(torch.zeros(3, 1, 4, 4))
    head = heads.Categorical(LEVELS, to_input="unit")
    assert_untouched(module, lambda: fastgen.Sampler(module, event_shape=(1, 4, 4), head=head, machine=FAST))


def test_it_is_left_as_it_was_by_a_refusal_too():
    module = Caches()
    module.output = nn.Linear(8, LEVELS + 1)

    def refused() -> None:
        with pytest.raises(ValueError, match="output must have shape"):
            compile_caching(module)

    assert_untouched(module, refused)


def test_an_adapter_and_what_it_holds_are_left_as_they_were():
    module, norm, calls = nn.Embedding(LEVELS, LEVELS), nn.BatchNorm1d(LEVELS).eval(), [0]

    def adapter(h: Tensor) -> Tensor:
        calls[0] += 1
        norm.calls = calls[0]
        return norm(h.transpose(1, 2))

    options = {"order": "time", "predicts": "next", "adapter": adapter, "machine": FAST}
    assert_untouched(norm, lambda: fastgen.Sampler(module, (12,), heads.Categorical(LEVELS), **options))
    assert calls == [0]


def test_values_dtypes_shapes_and_classes_are_put_back():
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    view = module[0].weight[0]
    held = tensors(module)

    def change() -> None:
        with untouched(module), torch.no_grad():
            module.double()
            module[0].weight.data = torch.zeros(7)
            module[1].weight.data.fill_(float("nan"))
            module[1].__class__ = nn.Identity
            module[0].weight.requires_grad_(False)
            module[1].bias.grad = torch.ones(4, dtype=torch.float64)
            del module[1]

    assert_untouched(module, change)
    assert type(module[1]) is nn.Linear
    assert torch.equal(view, module[0].weight[0])
    assert view.data_ptr() == module[0].weight.data_ptr() == held["0.weight"][1]


def test_a_generator_that_a_module_holds_goes_on_where_it_was():
    module = nn.Module()
    module.generator = torch.Generator().manual_seed(1)
    with untouched(module):
        torch.rand(3, generator=module.generator)
    assert torch.equal(
        torch.rand(3, generator=module.generator), torch.rand(3, generator=torch.Generator().manual_seed(1))
    )


def test_inputs_are_not_changed_by_a_forward_that_changes_them():
    """Fault generation_14: a first layer that works in place."""
    module = nn.Sequential(nn.Conv1d(1, LEVELS, 1))
    module.forward = lambda x: nn.Sequential.forward(module, F.relu_(x.sub_(0.5))[:, None])
    head = heads.Categorical(LEVELS, to_input="unit")
    sampler = fastgen.Sampler(module, (12,), head, order="time", predicts="next", machine=FAST)
    levels = sampler.sample(4)
    kept = levels.clone()
    assert torch.equal(levels, sampler.sample_naive(4))
    sampler.log_prob(levels)
    assert torch.equal(levels, kept)
