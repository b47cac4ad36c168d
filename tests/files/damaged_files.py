"""Damaged files of every kind that fastgen reads, made from good ones by a seed; many carry right digests."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import fastgen
from fastgen.generate.files.tensor_file import read_tensor_file, write_tensor_file
from fastgen.models.saved_weights import read_weights, write_weights
from fastgen.training.directory import RunDirectory

EXTREMES = [-(2**63), -(2**62), -(2**31), -5, -2, -1, 0, 1, 2, 3, 7, 100, 4097, 2**16, 2**21, 2**31, 2**32, 2**40]
EXTREMES += [2**41, 2**62, 2**63 - 1]
VALUES = [*EXTREMES, None, True, "x", "", [], {}, [1], 0.5, -1.0, 1e300, float("nan"), float("inf"), 10**400, [[]], "1"]
KINDS = ("sampler", "state", "model", "checkpoint")


class Net(nn.Module):
    """A causal network with an embedding and a ring of several positions; a network of its own reads the context."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(6, 8), nn.Conv1d(8, 8, 2, dilation=2), nn.Conv1d(8, 6, 1)
        self.listen = nn.Linear(3, 8)

    def forward(self, x, context):
        hidden = self.embed(x).transpose(1, 2)
        heard = self.listen(context["c"].sort(1).values)
        mixed = self.mix(nn.functional.pad(hidden, (2, 0))) + heard[..., None]
        return self.head(torch.tanh(mixed))


CONTEXT = {"c": torch.zeros(1, 3)}


def write_good_file(kind: str, folder: Path) -> None:
    """One good file or directory, under the name of its kind; a state has its sampler beside it."""
    torch.manual_seed(0)
    if kind in ("sampler", "state"):
        head = fastgen.heads.Categorical(6)
        sampler = fastgen.Sampler(Net(), (20,), head, "time", predicts="next", example_context=CONTEXT, threads=1)
        sampler.save(folder / "sampler")
        sampler.advance(sampler.start(2, seed=7, context=CONTEXT, log_prob=True), 9).save(folder / "state")
        return
    model = fastgen.create_model("maf", preset="tiny")
    model.save_pretrained(folder / "model")
    optimizer = torch.optim.AdamW(model.parameters())
    model.loss(torch.randn(4, *model.config.event_shape)).backward()
    optimizer.step()
    weights = model.state_dict()
    state = {"step": 3, "network": weights, "average": weights, "optimizer": optimizer.state_dict()}
    RunDirectory(folder / "checkpoint").save_checkpoint(state)


def damage(kind: str, good: Path, bad: Path, choose: random.Random) -> None:
    """Writes a damaged copy of a good file."""
    if kind in ("sampler", "state"):
        if choose.random() < 0.15:
            bad.write_bytes(_damaged_bytes(good.read_bytes(), choose))
        else:
            name = {"sampler": "program", "state": "state"}[kind]
            tensors, description = read_tensor_file(good, name)
            _damage_tensors(tensors, choose)
            _sometimes(choose, lambda: _damage_json(description, choose))
            write_tensor_file(bad, name, tensors, description)
    elif kind == "model":
        bad.mkdir(exist_ok=True)
        config = json.loads((good / "config.json").read_text())
        tensors = read_weights(good / "model.safetensors", config)
        _sometimes(choose, lambda: _damage_tensors(tensors, choose))
        _damage_json(config["config"] if choose.random() < 0.8 else config, choose)
        write_weights(bad / "model.safetensors", tensors, config)
        (bad / "config.json").write_text(json.dumps(config))
        file = bad / choose.choice(["config.json", "model.safetensors"])
        _sometimes(choose, lambda: file.write_bytes(_damaged_bytes(file.read_bytes(), choose)), 0.15)
    else:
        source, target = RunDirectory(good).checkpoint, RunDirectory(bad).checkpoint
        target.parent.mkdir(parents=True, exist_ok=True)
        form = choose.random()
        if form < 0.3:
            target.write_bytes(_damaged_bytes(source.read_bytes(), choose))
        elif form < 0.6:
            target.write_bytes(_damaged_archive(source, choose))
        else:
            state = torch.load(source, weights_only=True)
            _damage_json(state, choose)
            torch.save(state, target)


def _sometimes(choose: random.Random, action: Callable[[], object], chance: float = 0.4) -> None:
    if choose.random() < chance:
        action()


def _damaged_bytes(data: bytes, choose: random.Random) -> bytes:
    at, form = choose.randrange(len(data)), choose.random()
    if form < 0.2:
        return data[:at]
    if form < 0.4:  # the header, where every byte counts
        at = choose.randrange(min(len(data), 600))
    if form < 0.7:
        return data[:at] + bytes([data[at] ^ 1 << choose.randrange(8)]) + data[at + 1 :]
    return data[:at] + choose.randbytes(choose.choice([1, 8, 64])) + data[at + choose.choice([0, 1, 8]) :]


def _damaged_archive(path: Path, choose: random.Random) -> bytes:
    """A zip file with right checksums around a damaged part; compressed now and then."""
    written = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(written, "w", choose.choice([0, 0, 0, 8])) as new:
        names = old.namelist()
        hit = next(n for n in names if n.endswith("data.pkl")) if choose.random() < 0.7 else choose.choice(names)
        for name in names:
            part = old.read(name)
            new.writestr(name, _damaged_bytes(part, choose) if name == hit and part else part)
    return written.getvalue()


def _damage_tensors(tensors: dict[str, torch.Tensor], choose: random.Random) -> None:
    """One to three entries of tables replaced; now and then a tensor of another shape, dtype or name."""
    for _ in range(choose.choice([1, 1, 2, 3])):
        name = choose.choice(list(tensors))
        tensor, form = tensors[name].clone(), choose.random()
        if form < 0.04:
            tensors[name] = tensor[: len(tensor) // 2] if tensor.dim() else tensor[None]
        elif form < 0.07:
            dtypes = [torch.float16, torch.int8, torch.float64, torch.bool, torch.int64]
            tensors[name] = tensor.to(choose.choice(dtypes))
        elif form < 0.09:
            tensors[name + choose.choice(["", "x"])] = torch.zeros(choose.choice([0, 1, 5]))
        elif form < 0.12:
            other = choose.choice(list(tensors))
            tensors[name], tensors[other] = tensors[other], tensors[name]
        elif form < 0.14:
            del tensors[name]
        elif tensor.numel():
            at = choose.randrange(tensor.numel())
            value = choose.choice(EXTREMES) if choose.random() < 0.6 else choose.choice([-2, -1, 1, 2, 3])
            flat = tensor.reshape(-1)
            if tensor.is_floating_point():
                flat[at] = choose.choice([float("nan"), float("inf"), -1.0, 1e30, 0.0, float(value)])
            elif tensor.dtype == torch.int64:
                near = int(flat[at]) + value
                flat[at] = value if choose.random() < 0.6 or not -(2**63) <= near < 2**63 else near
            tensors[name] = tensor
        if not tensors:
            return


def _damage_json(values: dict, choose: random.Random) -> None:
    """One value somewhere inside replaced, removed or added."""
    inner: dict | list = values
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        if not keys:
            return
        key = choose.choice(keys)
        if isinstance(inner[key], dict | list) and choose.random() < 0.7:
            inner = inner[key]
            continue
        form = choose.random()
        if form < 0.85:
            inner[key] = choose.choice(VALUES)
        elif form < 0.95:
            del inner[key]
        elif isinstance(inner, dict):
            inner["more"] = 1
        return
