"""Large models are built without memory: on the meta device, then ``to_empty``, then their state is loaded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastgen.nn import MaskedConv2d, Permutation
from tests.nn.layer_cases import CASES, Case


def outputs(case: Case, layer: nn.Module) -> list[Tensor]:
    """What the layer makes, and what its inverse makes of that."""
    with torch.no_grad():
        found = layer(*case.inputs(), **case.options)
        found = [found] if isinstance(found, Tensor) else [part for part in found if isinstance(part, Tensor)]
        if hasattr(layer, "inverse"):
            others = case.inputs()[1:]
            found += layer.inverse(found[0], *others, **case.options)
    return found


def emptied(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The layer with memory that nobody has written to yet; here full of sevens, as zeros would hide what is lost."""
    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty_like", lambda t, device: torch.full_like(t, 7, device=device))
        return layer.to_empty(device="cpu")


def made_on_meta(case: Case) -> nn.Module:
    with torch.device("meta"):
        layer = case.make()
    assert all(tensor.is_meta for tensor in layer.state_dict().values())
    return layer


@pytest.mark.parametrize("name", CASES)
def test_a_layer_without_memory_is_the_same_once_its_state_is_loaded(name, monkeypatch):
    """robustness_masks_lost"""
    case = CASES[name]
    layer = case.layer()
    wanted, state = outputs(case, layer), {key: value.clone() for key, value in layer.state_dict().items()}
    moved, made = emptied(layer.to("meta"), monkeypatch), emptied(made_on_meta(case), monkeypatch)
    for layer, assign in ((moved, False), (made, False), (made_on_meta(case), True)):
        layer.load_state_dict(state, assign=assign)
        assert not any(tensor.is_meta for tensor in (*layer.parameters(), *layer.buffers()))
        for mine, theirs in zip(outputs(case, layer.eval()), wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_mask_follows_the_weight():
    layer = MaskedConv2d(2, 3, 3, "A")
    before = layer.mask.clone()
    layer.mask.fill_(1)
    assert layer.double().mask.dtype == torch.float64
    assert torch.equal(layer.mask, before.double())
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_the_inverse_of_a_permutation_follows_its_state():
    layer = Permutation([2, 0, 1, 3])
    layer.load_state_dict({"indices": torch.tensor([1, 2, 3, 0])})
    x = torch.randn(2, 4)
    assert torch.equal(layer.inverse(layer(x)[0])[0], x)
    assert list(layer.state_dict()) == ["indices"]
