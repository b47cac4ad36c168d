"""Models in any precision: the dtype of the parameters decides, whatever the data are given in."""

from __future__ import annotations

import pytest
import torch

from fastgen.models import create_model, list_models
from fastgen.models.base import Model

SMALL = {"wavenet": {"event_shape": (40,), "layers_per_cycle": 3}}
CLOSE = {torch.float64: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def score(model: Model, data: torch.dtype) -> torch.Tensor:
    """Of always the same data, with always the same noise."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, *config.event_shape, generator=generator)
    torch.manual_seed(0)
    with torch.no_grad():
        return model.score((x * config.levels).long() if config.levels else x.to(data), model.example_context(3))


@pytest.mark.parametrize("name", list_models())
def test_a_model_scores_in_the_precision_of_its_parameters(name):
    """reports_model_dtypes"""
    torch.manual_seed(1)
    model = create_model(name, preset="tiny", **SMALL.get(name, {})).eval()
    wanted, noisy = score(model, torch.float32), model.config.levels and model.family == "flow"
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for dtype, close in CLOSE.items():
        model.to(dtype)
        for data in (torch.float32, dtype):
            found = score(model, data)
            assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert found.isfinite().all()
            if not (noisy and dtype == torch.float64):  # whose noise is other numbers
                torch.testing.assert_close(found.float(), wanted, rtol=close, atol=close)
        model.float().load_state_dict(state)


@pytest.mark.parametrize("name", ["gated_pixelcnn", "pixelcnn_pp", "wavenet", "maf"])
def test_a_context_is_cast_to_the_dtype_of_the_parameters(name):
    options = {"wavenet": {"frames": 2, "upsampling": (4, 5)}, "gated_pixelcnn": {"map": 2}}.get(name, {})
    torch.manual_seed(1)
    model = create_model(name, preset="tiny", vector=3, classes=2, **SMALL.get(name, {}) | options).eval()
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        model.to(dtype)
        assert score(model, torch.float32).isfinite().all()
