"""Integers that layers are made of and called with: NumPy's are as good as Python's, and nothing else is one."""

from __future__ import annotations

import functools
import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import fastgen
from fastgen.nn import (
    AffineCoupling,
    CausalConv1d,
    ContinuousFlow,
    DownRightShiftedConv2d,
    FlowSequential,
    HutchinsonTrace,
    MaskedConv2d,
    MLPField,
)
from tests.nn.layer_cases import CASES


def of_numpy(value):
    """The same arguments with NumPy's integers."""
    if isinstance(value, int) and not isinstance(value, bool):
        return np.int64(value)
    return type(value)(map(of_numpy, value)) if type(value) in (tuple, list) else value


def layers_of(name: str, change, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every class of the layer called with arguments that went through ``change``."""
    layer = CASES[name].make()
    for kind in {type(module) for module in layer.modules() if type(module).__module__.startswith("fastgen.nn")}:
        init = kind.__init__

        @functools.wraps(init)
        def wrapped(self, *positional, _init=init, **named):
            _init(self, *map(change, positional), **{key: change(value) for key, value in named.items()})

        monkeypatch.setattr(kind, "__init__", wrapped)


@pytest.mark.parametrize("name", CASES)
def test_a_layer_of_numpy_integers_is_the_same(name, monkeypatch):
    """robustness_numpy_integers"""
    case = CASES[name]
    wanted = tree_leaves(case.layer()(*case.inputs(), **case.options))
    layers_of(name, of_numpy, monkeypatch)
    options = {key: np.int64(value) for key, value in case.options.items()}
    for a, b in zip(tree_leaves(case.layer()(*case.inputs(), **options)), wanted, strict=True):
        assert torch.equal(a, b)


def integer_parameters() -> list[tuple[str, type, str]]:
    found = []
    for name, case in CASES.items():
        kind = type(case.make())
        if kind.__name__ == name:
            signature = inspect.signature(kind.__init__)
            found += [(name, kind, key) for key, p in signature.parameters.items() if str(p.annotation) == "int"]
    return found


@pytest.mark.parametrize(("name", "kind", "key"), integer_parameters(), ids=lambda value: str(value).split(".")[-1])
def test_what_is_no_integer_is_refused(name, kind, key, monkeypatch):
    init = kind.__init__
    for wrong in (2.5, math.nan, "3"):

        def wrapped(self, *positional, _wrong=wrong, **named):
            bound = inspect.signature(init).bind(self, *positional, **named)
            bound.arguments[key] = _wrong
            init(*bound.args, **bound.kwargs)

        monkeypatch.setattr(kind, "__init__", wrapped)
        with pytest.raises((ValueError, TypeError)):
            CASES[name].make()


@pytest.mark.parametrize("wrong", [2.5, math.nan, True, 0])
def test_the_refusal_names_the_number(wrong):
    """robustness_numpy_integers"""
    field = MLPField((2, 8, 2))
    for make, name in (
        (lambda: CausalConv1d(3, 5, 2, dilation=wrong), "dilation"),
        (lambda: ContinuousFlow(field, probes=wrong), "probes"),
        (lambda: HutchinsonTrace(field, probes=wrong), "probes"),
        (lambda: MaskedConv2d(4, 4, 3, "B", stride=wrong), "stride"),
        (lambda: DownRightShiftedConv2d(4, 4, stride=wrong), "stride"),
    ):
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got {wrong}"):
            make()


@pytest.mark.parametrize("seed", [np.int64(3), np.int32(3), np.uint64(3)])
def test_a_seed_of_numpy_is_the_seed(seed):
    """robustness_numpy_integers"""
    flow = ContinuousFlow(MLPField((2, 8, 2)), solver="rk4", step_size=0.5)
    row = FlowSequential(AffineCoupling(nn.Linear(1, 2)), flow)
    x = torch.randn(3, 2)
    for a, b in zip(row(x, seed=seed), row(x, seed=3), strict=True):
        assert torch.equal(a, b)
    model = fastgen.create_model("maf", preset="tiny").eval()
    assert torch.equal(model.sample(2, seed=seed), model.sample(2, seed=3))
