"""Every model exports at static shapes, with its context, and computes the same numbers."""

from __future__ import annotations

import pytest
import torch

import fastgen
from fastgen.models import create_model

WAVENET = {"event_shape": (40,), "cycles": 1, "layers_per_cycle": 3, "levels": 7}
FRAMES = {"classes": 3, "vector": 2, "frames": 3, "upsampling": (2, 3)}
CASES = [
    ("pixelcnn", {"layers": 1}),
    ("pixelcnn", {"layers": 1, "event_shape": (3, 5, 6)}),
    ("gated_pixelcnn", {"layers": 2}),
    ("gated_pixelcnn", {"layers": 2, "event_shape": (3, 5, 6), "classes": 3, "vector": 2, "map": 2}),
    ("pixelcnn_pp", {"event_shape": (3, 8, 8), "classes": 3, "vector": 2}),
    ("wavenet", WAVENET),
    ("wavenet", {**WAVENET, "output": "mixture", "classes": 3}),
    ("wavenet", {**WAVENET, **FRAMES}),
    ("wavenet", {**WAVENET, **FRAMES, "learned_upsampling": False}),
]


@pytest.mark.parametrize(("name", "config"), CASES)
def test_exports_and_computes_the_same(name, config):
    model = create_model(name, preset="tiny", **config).eval()
    levels = torch.randint(0, model.config.levels, (2, *model.config.event_shape))
    context = model.example_context()
    inputs = (model.head.to_input(levels),) if context is None else (model.head.to_input(levels), context)
    exported = torch.export.export(model, inputs).run_decompositions({})
    with fastgen.backend("reference"):  # the program is of PyTorch's ops, so the model must be, too
        torch.testing.assert_close(exported.module()(*inputs), model(*inputs), rtol=0, atol=0)
