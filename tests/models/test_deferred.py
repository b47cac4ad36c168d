"""Every model can be built on the meta device, emptied, and loaded."""

from __future__ import annotations

import pytest
import torch

from fastgen.models import create_model, list_models
from fastgen.models.base import Model


def make(name: str) -> Model:
    return create_model(name, preset="tiny")


def score(model: Model) -> torch.Tensor:
    config = model.config
    torch.manual_seed(0)
    x = torch.rand(3, *config.event_shape)
    with torch.no_grad():
        return model.eval().score((x * config.levels).long() if config.levels else x)


@pytest.mark.parametrize("name", list_models())
def test_a_model_made_without_memory_is_the_same_once_its_state_is_loaded(name, monkeypatch):
    """robustness_masks_lost"""
    torch.manual_seed(1)
    model = make(name)
    wanted, state = score(model), model.state_dict()
    with torch.device("meta"):
        model = make(name)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty_like", lambda t, device: torch.full_like(t, 7, device=device))
        model.to_empty(device="cpu")
    model.load_state_dict(state)
    torch.testing.assert_close(score(model), wanted)
