"""Directories of models are data: damage is told, and a config asks for no more than its weights have."""

from __future__ import annotations

import json
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastgen.models import create_model, from_pretrained
from fastgen.models.saved_weights import write_weights


@pytest.fixture
def saved(tmp_path):
    create_model("maf", preset="tiny").save_pretrained(tmp_path)
    return tmp_path


def rewrite(directory, config=None, tensors=None, **changes) -> None:
    """The directory with another config or other weights, and right digests."""
    description = json.loads((directory / "config.json").read_text()) if config is None else config
    description = description | {"config": description["config"] | changes} if changes else description
    (directory / "config.json").write_text(json.dumps(description))
    weights = load_file(directory / "model.safetensors") if tensors is None else tensors
    write_weights(directory / "model.safetensors", weights, description)


def test_flipped_bits_are_told(saved):
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    for at in (0, 9, 300, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=r"is damaged|is no safetensors file|holds? the weights|another config"):
            from_pretrained(saved)
    path.write_bytes(whole)
    text = (saved / "config.json").read_text()
    (saved / "config.json").write_text(text.replace('"levels": 0', '"levels": 8'))
    with pytest.raises(ValueError, match=r"was saved with another config than .*config\.json holds now"):
        from_pretrained(saved)
    (saved / "config.json").write_text(json.dumps(json.loads(text)))  # another layout of the same
    from_pretrained(saved)


def test_weights_of_other_programs_need_no_digest(saved):
    wanted = from_pretrained(saved).state_dict()
    save_file(load_file(saved / "model.safetensors"), saved / "model.safetensors")
    assert all(torch.equal(value, wanted[name]) for name, value in from_pretrained(saved).state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": "x"}, r"config\.json: hidden must be of type tuple\[int, \.\.\.\], got 'x'"),
        ({"hidden": [1.5]}, r"config\.json: hidden must be of type tuple\[int, \.\.\.\], got \[1\.5\]"),
        ({"hidden": [True]}, r"config\.json: hidden must be of type tuple\[int, \.\.\.\], got \[True\]"),
        ({"hidden": []}, "does not hold the weights of its config"),
        ({"hidden": [1 << 40]}, "does not hold the weights of its config: its config asks for more"),
        ({"hidden": [1 << 20, 1 << 20]}, "does not hold the weights of its config: its config asks for more"),
        ({"layers": 1 << 40}, "does not hold the weights of its config: its config asks for more"),
        ({"event_shape": [1 << 40]}, "does not hold the weights of its config"),
        ({"event_shape": [[2]]}, r"config\.json: event_shape must be of type tuple\[int, \.\.\.\], got \[\[2\]\]"),
        ({"event_shape": None}, r"config\.json: event_shape must be of type tuple\[int, \.\.\.\], got None"),
        ({"levels": True}, r"config\.json: levels must be of type int, got True"),
        (
            {"levels": 10**400},
            r"config\.json: levels must be of type int, got 1000.*",
        ),
        ({"alpha": float("nan")}, r"config\.json: (alpha must be of type float, got nan|alpha: no such field)"),
        ({"more": 1}, r"config\.json: more: no such field in MAFConfig"),
    ],
)
def test_what_is_wrong_with_a_saved_config_is_told_without_memory(changes, message, saved):
    rewrite(saved, **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message) as told:
        from_pretrained(saved)
    assert "\n" not in str(told.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '{"model": 3, "config": {}}', '{"model": "maf"}', "[" * 100_000, "\xff"]
)
def test_a_config_that_is_none_is_told(text, saved):
    (saved / "config.json").write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=r"config\.json (must be JSON|must be a JSON object|is not the config)"):
        from_pretrained(saved)


def test_another_models_weights_are_told(saved, tmp_path):
    tensors = load_file(saved / "model.safetensors")
    name = next(iter(tensors))
    for changed, message in (
        ({k: v for k, v in tensors.items() if k != name}, f"it lacks 1 tensors, {name}"),
        (tensors | {"more": torch.zeros(1)}, "it has besides 1 tensors, more"),
        (tensors | {name: tensors[name][..., None].clone()}, f"{name} must be "),
        (tensors | {name: tensors[name].to(torch.int32)}, f"{name} must be "),
    ):
        rewrite(saved, tensors=changed)
        with pytest.raises(ValueError, match=message):
            from_pretrained(saved)
