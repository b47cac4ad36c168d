"""Models by name, their configs, files, contexts, and the samplers they keep."""

from __future__ import annotations

import copy
import json
import math
import pickle

import pytest
import torch

import fastgen
from fastgen.models import create_model, from_pretrained, list_models, model_class

MODELS = list_models("autoregressive")
SHORT = {"wavenet": {"event_shape": (50,), "layers_per_cycle": 3}}


def tiny(name: str, **config):
    return create_model(name, preset="tiny", **(SHORT.get(name, {}) | config))


def random_levels(model, n: int = 3) -> torch.Tensor:
    return torch.randint(0, model.config.levels, (n, *model.config.event_shape))


def test_list_models():
    assert list_models() == sorted(MODELS + list_models("flow"))
    assert MODELS == ["gated_pixelcnn", "pixelcnn", "pixelcnn_pp", "pixelsnail", "wavenet"]
    assert fastgen.list_models is list_models


@pytest.mark.parametrize("name", MODELS)
def test_presets(name):
    paper = model_class(name).Config()
    assert paper.levels == 256
    config = create_model(name, preset="tiny").config
    assert config != paper
    assert create_model(name, preset="tiny", levels=3).config.levels == 3


@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded_is_the_same_model(name, tmp_path):
    model = tiny(name, **({} if name == "pixelcnn" else {"classes": 4})).eval()
    model.save_pretrained(tmp_path / "run")
    loaded = from_pretrained(tmp_path / "run")
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert not loaded.training
    levels, context = random_levels(model), model.example_context(3)
    assert torch.equal(loaded.log_prob(levels, context), model.log_prob(levels, context))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", MODELS)
def test_loss_is_the_mean_and_bits_are_nats_over_log_two(name):
    model = tiny(name).eval()
    levels = random_levels(model)
    nats = -model.log_prob(levels)
    assert nats.shape == (3,)
    torch.testing.assert_close(model.loss(levels), nats.mean())
    torch.testing.assert_close(model.loss((levels, None)), nats.mean())
    torch.testing.assert_close(model.bits_per_dim(levels), nats / (levels[0].numel() * math.log(2)))


class FakeSampler:
    """Records how it was built and refreshed."""

    def __init__(self, model, **arguments) -> None:
        self.arguments, self.refreshed = arguments, 0

    def refresh(self) -> None:
        self.refreshed += 1

    def sample(self, n, **options):
        return n, options


def test_a_sampler_is_built_once_and_refreshed_when_weights_change(monkeypatch):
    monkeypatch.setitem(vars(fastgen), "Sampler", FakeSampler)
    model = tiny("gated_pixelcnn", classes=4).train()
    sampler = model.sampler()
    assert model.training
    assert sampler.arguments["event_shape"] == (1, 8, 8)
    assert sampler.arguments["order"] == "raster"
    assert sampler.arguments["predicts"] == "same"
    assert torch.equal(sampler.arguments["example_context"], torch.zeros(2, dtype=torch.int64))
    assert model.sampler() is sampler
    assert sampler.refreshed == 0
    model.output.weight.data[0, 0] += 1
    assert model.sampler() is sampler
    assert sampler.refreshed == 1
    assert model.sampler(weights="int8") is not sampler
    n, options = model.sample(2, seed=5, context=torch.tensor([1, 3]), temperature=0.5)
    assert n == 2
    assert options["seed"] == 5
    assert options["temperature"] == 0.5
    assert sampler.refreshed == 1


def test_weights_that_were_zero_when_a_sampler_was_compiled_may_be_trained():
    model = tiny("wavenet", event_shape=(12,)).eval()
    layer = next(m for m in model.modules() if isinstance(m, torch.nn.Conv1d))
    trained = layer.weight.detach().clone()
    torch.nn.init.zeros_(layer.weight)
    folded = model.sampler()
    with torch.no_grad():
        layer.weight.copy_(trained)
    assert torch.equal(model.sample(3, seed=1), model.sampler().sample_naive(3, seed=1))
    assert model.sampler() is not folded


def test_copies_leave_the_sampler_behind(monkeypatch):
    monkeypatch.setitem(vars(fastgen), "Sampler", FakeSampler)
    model = tiny("pixelcnn")
    model.sampler()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other._compiled == {}
        assert torch.equal(other.output.weight, model.output.weight)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: create_model("pixelcnnn"), ["pixelcnnn", "wavenet"]),
        (lambda: create_model("wavenet", preset="huge"), ["huge", "paper, tiny"]),
        (lambda: create_model("wavenet", channels=3), ["channels", "residual_channels"]),
        (lambda: list_models("flows"), ["flows", "autoregressive, flow"]),
        (lambda: create_model("pixelcnn", event_shape=(8, 8)), ["event_shape", "channels, height, width"]),
        (lambda: create_model("pixelcnn", event_shape=(0, 8, 8)), ["event_shape", "positive"]),
        (lambda: create_model("pixelcnn", levels=1), ["levels", "at least 2", "got 1"]),
        (lambda: create_model("pixelcnn", kernel_size=2), ["kernel_size", "odd", "got 2"]),
        (lambda: create_model("pixelcnn", channels=2), ["channels", "at least 3", "got 2"]),
        (lambda: create_model("gated_pixelcnn", kernel_size=1), ["kernel_size", "at least 3", "got 1"]),
        (lambda: create_model("gated_pixelcnn", classes=-1), ["classes", "at least 0", "got -1"]),
        (lambda: create_model("pixelcnn_pp", event_shape=(1, 6, 8)), ["(1, 6, 8)", "divisible by 4"]),
        (lambda: create_model("pixelcnn_pp", event_shape=(2, 8, 8)), ["(2, 8, 8)", "1 or 3 channels"]),
        (
            lambda: create_model("pixelcnn_pp", dropout=1.0),
            ["dropout", "less than 1", "got 1.0"],
        ),
        (lambda: create_model("wavenet", event_shape=(1, 8)), ["(1, 8)", "(length,)"]),
        (lambda: create_model("wavenet", output="softmax"), ["softmax", "categorical", "mixture"]),
        (
            lambda: create_model("wavenet", gate_channels=3),
            ["gate_channels", "even", "got 3"],
        ),
        (lambda: create_model("wavenet", frames=3), ["frames=3", "upsampling"]),
        (lambda: create_model("wavenet", upsampling=(4,)), ["frames=0", "upsampling"]),
    ],
)
def test_what_is_wrong_with_a_config_is_named(make, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (every word of the message is checked below)
        make()
    assert all(word in str(error.value) for word in words), str(error.value)


LABELS, FRAMES = torch.zeros(3, dtype=torch.int64), torch.zeros(3, 2, 9)


@pytest.mark.parametrize(
    ("config", "context", "words"),
    [
        ({}, LABELS, ["context must be None"]),
        ({"classes": 4}, None, ["nothing", "class"]),
        ({"classes": 4}, LABELS.float(), ["class", "int64"]),
        ({"classes": 4}, LABELS + 4, ["class", "4 to 4", "0 to 3"]),
        ({"classes": 4}, LABELS[:2], ["class", "2 rows", "3 samples"]),
        ({"classes": 4}, LABELS[:, None], ["class", "(3, 1)", "[N]"]),
        ({"vector": 2}, torch.zeros(3, 3), ["vector", "(3, 3)", "[N, 2]"]),
        ({"vector": 2}, torch.zeros(3, 2, dtype=torch.int64), ["vector", "floating point"]),
        ({"classes": 4, "frames": 2, "upsampling": (8,)}, LABELS, ["dict", "class, frames"]),
        ({"classes": 4, "frames": 2, "upsampling": (8,)}, {"class": LABELS}, ["class", "frames"]),
        ({"frames": 2, "upsampling": (8,)}, {"frames": FRAMES, "map": FRAMES}, ["frames", "map"]),
        ({"frames": 2, "upsampling": (8,)}, FRAMES[:, :, :6], ["at least 7 frames", "got 6"]),
        ({"frames": 2, "upsampling": (8,)}, FRAMES[:, :1], ["frames", "[N, 2, any]"]),
    ],
)
def test_what_is_wrong_with_a_context_is_named(config, context, words):
    model = tiny("wavenet", **config)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (every word of the message is checked below)
        model.log_prob(random_levels(model), context)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_what_is_wrong_with_levels_is_named():
    model = tiny("gated_pixelcnn", map=2)
    with pytest.raises(ValueError, match=r"levels must be like \[N, 1, 8, 8\], got shape \(3, 8, 8\)"):
        model.log_prob(random_levels(model)[:, 0])
    with pytest.raises(ValueError, match=r"context 'map' must have the size of the image, \(8, 8\), got \(8, 7\)"):
        model.log_prob(random_levels(model), torch.zeros(3, 2, 8, 7))
    with pytest.raises(ValueError, match=r"x must have sides that 4 divides, got shape \(1, 1, 8, 6\)"):
        tiny("pixelcnn_pp")(torch.zeros(1, 1, 8, 6))


def test_what_is_wrong_with_a_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="not the config of a fastgen model"):
        from_pretrained(tmp_path)
    tiny("pixelcnn").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="test_what_is_wrong_with_a_dire0 must hold a model 'wavenet', got 'pixelcnn'"):
        model_class("wavenet").from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        from_pretrained(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    description["config"]["depth"] = 3
    (tmp_path / "config.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="depth: no such field in PixelCNNConfig"):
        from_pretrained(tmp_path)
