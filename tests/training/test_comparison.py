from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgen.generate.heads import Categorical
from fastgen.generate.noise import Noise
from fastgen.models import create_model
from fastgen.training.comparison import Comparison, compare


class Coin(nn.Module):
    """Every element is 0 with one probability, computed so that float32 rounds."""

    head = Categorical(2)

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = nn.Parameter(torch.tensor(probability, dtype=torch.float64))

    def forward(self, x, context=None):
        logits = torch.stack([self.probability.log(), torch.log1p(-self.probability)])
        return logits.reshape(1, 2, 1).expand(len(x), 2, x.shape[1])


def _uniform(seed: int, sample: int, position: int) -> float:
    return Noise(seed, torch.tensor([sample]), position).uniform(0, 0).item()


def test_the_same_samples_are_equal():
    model = create_model("pixelcnn_pp", "tiny", filters=4).eval()
    levels = torch.randint(0, 17, (3, 1, 8, 8))
    assert compare(model, levels, levels.clone(), seed=0) == Comparison(3, 0, 0)


@pytest.mark.parametrize("position", [0, 3])
def test_a_draw_at_a_cdf_edge_may_flip_and_what_follows_is_free(position):
    probability = _uniform(5, 1, position)
    one = torch.zeros(2, 6, dtype=torch.int64)
    other = one.clone()
    other[1, position:] = 1
    assert compare(Coin(probability).float(), one, other, seed=5) == Comparison(1, 1, 0)
    assert compare(Coin(probability + 1e-4).float(), one, other, seed=5) == Comparison(1, 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_changed_level_is_found(channels):
    model = create_model("pixelcnn_pp", "tiny", filters=4, event_shape=(channels, 8, 8)).eval()
    one = torch.randint(0, 17, (2, channels, 8, 8))
    other = one.clone()
    other[1, -1, 2, 3] = (other[1, -1, 2, 3] + 5) % 17
    comparison = compare(model, one, other, seed=0)
    assert comparison == Comparison(1, 0, 1)
    assert "1 DIFFER" in str(comparison)
