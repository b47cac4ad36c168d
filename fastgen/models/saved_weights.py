"""Weights as files: read as nothing but data, and a network is built only where it is as large as its file says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from fastgen.fields import one_line
from fastgen.generate.files.tensor_file import digest

Network = TypeVar("Network", bound=nn.Module)
_KEY = "digests"
"""Key of the digests of weights and config, a space between: safetensors writes several keys in any order."""


def write_weights(path: Path, tensors: Mapping[str, Tensor], description: dict[str, Any]) -> None:
    """Writes a safetensors file with a digest of the weights and of what ``config.json`` says."""
    tensors = {name: value.detach().contiguous() for name, value in tensors.items()}
    save_file(tensors, path, {_KEY: f"{digest(tensors, {})} {_of(description)}"})


def read_weights(path: Path, description: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a safetensors file; a file without digests, as other programs write them, is read as well.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or belongs to another config.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except (SafetensorError, AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no safetensors file: {one_line(error)}") from error
    if _KEY not in metadata:
        return tensors
    of_weights, _, of_config = metadata[_KEY].partition(" ")
    if of_weights != digest(tensors, {}):
        raise ValueError(f"{path} is damaged: its weights do not have the digest that was written with them")
    if of_config != _of(description):
        raise ValueError(
            f"{path} was saved with another config than {path.with_name('config.json')} holds now: one of them is "
            "damaged or was changed; save the model again"
        )
    return tensors


def built(build: Callable[[], Network], weights: Mapping[str, Tensor], path: Path) -> Network:
    """The network of ``build``, with these weights.

    Raises:
        ValueError: the config asks for another network than that of the weights.
    """
    try:
        model = built_within(build, weights, exactly=True)
        model.load_state_dict(weights)
    except (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold the weights of its config: {one_line(error)}") from error
    return model


def built_within(build: Callable[[], Network], weights: Mapping[str, Tensor], *, exactly: bool = False) -> Network:
    """The network of ``build``, which is built without memory first, and no further than the weights go.

    Raises:
        ValueError: it is much larger than the weights; or, if ``exactly``, its tensors are others.
    """
    with torch.device("meta"), _no_larger_than(weights):
        wanted = build().state_dict()
    if exactly:
        _check_fits(weights, wanted)
    return build()


def is_dense(value: Tensor) -> bool:
    """Returns whether a tensor is strided and takes as much memory as it has numbers, as an expanded one does not."""
    strided = value.layout == torch.strided and not value.is_quantized and not value.is_meta
    return strided and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _check_fits(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for names, words in ((wanted.keys() - weights.keys(), "lacks"), (weights.keys() - wanted.keys(), "has besides")):
        if names:
            raise ValueError(f"it {words} {len(names)} tensors, {', '.join(sorted(names)[:3])}")
    for name, value in wanted.items():
        given = weights[name]
        same = given.dtype == value.dtype or (given.is_floating_point() and value.is_floating_point())
        if given.shape != value.shape or not same:
            raise ValueError(f"{name} must be {value.dtype} {list(value.shape)}, got {given.dtype} {list(given.shape)}")


@contextmanager
def _no_larger_than(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Modules that this thread builds raise ValueError once they have more parameters than there are weights.

    A layer may replace its parameters once or twice. Buffers, which need not be in the file, and modules without
    parameters are held to a proportion of them.
    """
    values = sum(value.numel() for value in weights.values())
    left = {
        "parameters": 4 * len(weights) + 16,
        "values": 4 * values + (1 << 20),
        "buffers": 16 * values + (1 << 22),
        "modules": 64 * (len(weights) + 16),
    }
    thread = threading.get_ident()

    def take(name: str, count: int) -> None:
        if threading.get_ident() == thread:
            left[name] -= count
            if left[name] < 0:
                raise ValueError(f"its config asks for more {name} than its {len(weights)} tensors have")

    def parameter(module: nn.Module, name: str, value: Tensor | None) -> None:
        take("parameters", value is not None)
        take("values", 0 if value is None else value.numel())

    def buffer(module: nn.Module, name: str, value: Tensor | None) -> None:
        take("buffers", 0 if value is None else value.numel())

    hooks = (
        register_module_parameter_registration_hook(parameter),
        register_module_buffer_registration_hook(buffer),
        register_module_module_registration_hook(lambda m, n, value: take("modules", 1)),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _of(description: dict[str, Any]) -> str:
    return digest({}, {"config": json.dumps(description, sort_keys=True)})
