"""The table of layers has every layer, and each of its rows can be used."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import fastgen.nn
from tests.nn.layer_cases import CASES

ABSTRACT = {"AmortizedFlow", "FlowLayer", "MonotoneTransform"}


def test_every_public_layer_has_a_case():
    public = {name for name in fastgen.nn.__all__ if inspect.isclass(getattr(fastgen.nn, name))}
    layers = {name for name in public if issubclass(getattr(fastgen.nn, name), nn.Module)}
    named = {name.replace(",", "").split(" ")[0] for name in CASES}
    assert named == layers - ABSTRACT


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_the_same_each_time_and_holds_the_layer_it_is_named_after(name):
    case = CASES[name]
    first, second = case.layer(), case.layer()
    kind = getattr(fastgen.nn, name.replace(",", "").split(" ")[0])
    assert any(isinstance(module, kind) for module in first.modules())
    inputs = case.inputs()
    outputs, again = tree_leaves(first(*inputs, **case.options)), tree_leaves(second(*inputs, **case.options))
    assert all(torch.isfinite(out).all() for out in outputs)
    assert all(torch.equal(a, b) for a, b in zip(outputs, again, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_parameters_can_be_saved_and_sharded(name):
    """safetensors and FSDP take no strided tensors, FSDP no scalar parameters."""
    layer = CASES[name].make()
    assert all(parameter.dim() > 0 for parameter in layer.parameters())
    assert all(tensor.is_contiguous() for tensor in (*layer.parameters(), *layer.buffers()))
