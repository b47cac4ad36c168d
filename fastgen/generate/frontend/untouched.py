"""A module that is used for a while and then is exactly as it was."""

from __future__ import annotations

import functools
import random
import types
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fastgen.eval_mode import set_mode
from fastgen.generate.frontend.called_functions import written_out

_ATOMS = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type,
    types.ModuleType,
    torch.dtype,
    torch.device,
    torch.Size,
)
_DEPTH = 2
"""How many plain objects inside one another, from a module on, are looked at."""


@contextmanager
def untouched(*roots: object) -> Iterator[None]:
    """Undoes afterwards whatever a forward inside does to modules, or to what a function holds.

    Put back are: attributes and classes of every submodule (so its mode and its hooks), lists, dicts and sets, objects
    held by a module, values, shapes, dtypes and gradients of all tensors, and the random states of PyTorch, NumPy and
    Python. Every object stays the same object; memory for a copy of the tensors is needed.
    """
    saved = _Saved()
    saved.add(*roots)
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        saved.restore()
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


@contextmanager
def borrowed(network: nn.Module) -> Iterator[None]:
    """Puts the network in eval mode, without gradients, autocast and compiled code; it is ``untouched`` afterwards."""
    with (
        untouched(network),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        written_out(),
    ):
        set_mode(network, training=False)
        yield


class _Saved:
    def __init__(self) -> None:
        self.kept: dict[int, object] = {}  # by id; keeps what was seen alive, so that ids stay unique
        self.containers: list[tuple[object, object]] = []
        self.classes: list[tuple[object, type]] = []
        self.tensors: list[tuple[Tensor, Tensor, bool, Tensor | None]] = []
        self.generators: list[tuple[torch.Generator, Tensor]] = []
        self.storages: dict[int, tuple[Tensor, Tensor]] = {}  # by address: the bytes, and a copy of them

    def add(self, *roots: object) -> None:
        pending = deque((root, 0) for root in roots)
        while pending:
            item, depth = pending.popleft()
            if isinstance(item, _ATOMS) or id(item) in self.kept:
                continue
            self.kept[id(item)] = item
            pending.extend(self._visit(item, depth))

    def _visit(self, item: object, depth: int) -> list[tuple[object, int]]:
        """Saves one object; returns those that it holds, with their depths."""
        if isinstance(item, Tensor):
            self._tensor(item)
            held = [item.grad] if item.is_leaf else []
        elif isinstance(item, torch.Generator):
            self.generators.append((item, item.get_state()))
            return []
        elif isinstance(item, (dict, list, set, deque)):
            self.containers.append((item, _copied(item)))
            held = list(item.values()) if isinstance(item, dict) else list(item)
        elif isinstance(item, (tuple, frozenset)):
            held = list(item)
        elif isinstance(item, types.FunctionType):
            held = [cell.cell_contents for cell in item.__closure__ or () if _full(cell)]
        elif isinstance(item, types.MethodType):
            held = [item.__self__, item.__func__]
        elif isinstance(item, functools.partial):
            held = [item.func, item.args, item.keywords]
        elif isinstance(item, nn.Module):
            depth, held = 0, []
        elif depth < _DEPTH:
            depth, held = depth + 1, []
        else:
            return []
        attributes = getattr(item, "__dict__", None)
        if isinstance(attributes, dict) and not isinstance(item, types.FunctionType):
            self.classes.append((item, type(item)))
            self.containers.append((attributes, dict(attributes)))
            held += attributes.values()
        return [(part, depth) for part in held]

    def _tensor(self, tensor: Tensor) -> None:
        self.tensors.append((tensor, tensor.data, tensor.requires_grad, tensor.grad if tensor.is_leaf else None))
        content = _bytes(tensor)
        if content is not None and content.data_ptr() not in self.storages:
            self.storages[content.data_ptr()] = content, content.clone()

    def restore(self) -> None:
        for item, kind in self.classes:
            if type(item) is not kind:
                item.__class__ = kind
        for container, before in self.containers:
            _refill(container, before)
        with torch.no_grad():
            for tensor, data, requires_grad, grad in self.tensors:
                if not _same_place(tensor, data):
                    tensor.data = data
                if tensor.is_leaf:
                    if tensor.requires_grad != requires_grad:
                        tensor.requires_grad_(requires_grad)
                    if tensor.grad is not grad:
                        tensor.grad = grad
            for content, before in self.storages.values():
                if not torch.equal(content, before):
                    content.copy_(before)
        for generator, state in self.generators:
            generator.set_state(state)


def _full(cell) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _copied(container):
    return dict(container) if isinstance(container, dict) else container.copy()


def _refill(container, before) -> None:
    """Gives a container the objects that it held before, in the same order."""
    if isinstance(container, dict) and list(container) == list(before):
        for key, value in before.items():
            if container[key] is not value:
                container[key] = value
    elif isinstance(container, (dict, set)):
        container.clear()
        container.update(before)
    elif len(container) != len(before) or any(a is not b for a, b in zip(container, before, strict=True)):
        container.clear()
        container.extend(before)


def _same_place(tensor: Tensor, data: Tensor) -> bool:
    if tensor.dtype != data.dtype or tensor.shape != data.shape or tensor.layout != data.layout:
        return False
    if tensor.layout != torch.strided:
        return True
    return tensor.stride() == data.stride() and tensor.data_ptr() == data.data_ptr()


def _bytes(tensor: Tensor) -> Tensor | None:
    """Returns all bytes of a tensor's storage, as a tensor; None where it has none of its own."""
    if tensor.layout != torch.strided or tensor.is_meta or is_traceable_wrapper_subclass(tensor):
        return None
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return None
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
