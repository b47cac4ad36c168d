"""Files of tensors and a description: written with a digest of their content, and read as nothing but data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, uint8

from fastgen.fields import one_line, parse_object

FORMAT_VERSION = 6
"""Kept as ``format_version`` in every file. Raise it whenever older readers would misread a file, or newer ones an old
file. Version 1 had neither a digest nor a version; 3 keeps instructions as a header and a body, 2 did not; 6 has
the formats of buffers."""

_KINDS = {
    "program": "a sampler, as Sampler.save writes it",
    "state": "a state, as State.save writes it",
}
_READERS = {"program": "a sampler, which Sampler.load reads", "state": "a state, which load_state reads"}


def write_tensor_file(path, kind: str, tensors: Mapping[str, Tensor], description: dict[str, Any]) -> None:
    """Writes a safetensors file; ``description`` is plain JSON, kept under the key ``kind`` of its metadata."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {kind: json.dumps(description), "format_version": str(FORMAT_VERSION)}
    save_file(tensors, path, metadata | {"digest": digest(tensors, metadata)})


def read_tensor_file(path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors and the description that ``write_tensor_file`` wrote.

    Raises:
        ValueError: the file is damaged, of another kind, of another format version or of none.
        OSError: it is not there or cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        tensors = load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    except (SafetensorError, AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no safetensors file: {one_line(error)}") from error
    if kind not in metadata:
        held = next((words for other, words in _READERS.items() if other in metadata), "none")
        raise ValueError(f"{path} must hold {_KINDS[kind]}, got {held}")
    version = metadata.get("format_version")
    if version != str(FORMAT_VERSION):
        got = "none" if version is None else repr(version[:20])
        raise ValueError(
            f"{path} must have format_version {FORMAT_VERSION}, got {got}: it was written by another version of "
            "fastgen; read it with that version, or save it again with this one"
        )
    given = metadata.pop("digest", None)
    if given != digest(tensors, metadata):
        raise ValueError(f"{path} is damaged: its content does not have the digest that was written with it")
    return tensors, parse_object(metadata[kind], f"{path}: the description of the {kind}")


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Returns the SHA-256 of every name, dtype, shape, value and text, in the order of the names."""
    running = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        running.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        running.update(tensor.detach().reshape(-1).view(uint8).numpy())
    running.update(json.dumps(sorted(metadata.items())).encode())
    return running.hexdigest()
