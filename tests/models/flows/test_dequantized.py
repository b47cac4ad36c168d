from __future__ import annotations

import pytest
import torch

from fastgen.models import create_model


@pytest.mark.parametrize("name", ["flow_plus_plus", "glow", "nsf_coupling", "realnvp"])
def test_a_flow_of_images_is_bounded_with_either(name):
    preset = "tiny_image" if name == "nsf_coupling" else "tiny"
    levels, noise = torch.randint(0, 17, (3, 1, 8, 8)), torch.rand(3, 1, 8, 8)
    for how in ("variational", "uniform"):
        model = create_model(name, preset=preset, dequantization=how)
        assert (model.dequantization is None) == (how == "uniform")
        assert model.elbo(levels, noise=noise).isfinite().all()
    assert create_model(name, preset=preset, dequantization="variational", levels=0).dequantization is None


def test_the_noise_is_part_of_the_bound():
    torch.manual_seed(0)
    model = create_model("glow", preset="tiny", dequantization="variational").eval()
    levels, noise = torch.randint(0, 17, (3, 1, 8, 8)), torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        u, log_q = model.dequantization(levels, noise)
        expected = model.log_prob((levels + u) / 17) - log_q - 64 * torch.tensor(17.0).log()
        torch.testing.assert_close(model.elbo(levels, noise=noise), expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dequantization": "none"}, "dequantization must be one of 'variational', 'uniform', got 'none'"),
        (
            {"dequantization": "variational", "event_shape": (1, 4, 3), "scales": 1},
            r"event_shape must be \(channels, height, width\) .*, got \(1, 4, 3\)",
        ),
        (
            {"dequantization": "variational", "event_shape": (4,)},
            r"event_shape must be \(channels, height, width\) .*, got \(4,\)",
        ),
        ({"dequantization_filters": 10}, "dequantization_filters must be a multiple of dequantization_heads=4, got 10"),
        ({"dequantization_couplings": 0}, "dequantization_couplings must be at least 1, got 0"),
        ({"dequantization_dropout": 1.0}, r"dequantization_dropout must be at least 0 and less than 1, got 1\.0"),
    ],
)
def test_a_wrong_config_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        create_model("realnvp", preset="tiny", **config)
