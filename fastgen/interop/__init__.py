"""Other libraries' flows on fastgen's kernels: ``fastgen.accelerate("nflows")``, ``fastgen.restore("nflows")``."""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

PEERS = {"nflows": "nflows", "zuko": "zuko", "normflows": "normflows", "FrEIA": "freia"}
"""Module of the library -> module of ``fastgen.interop`` that accelerates it."""

_accelerated: dict[str, ExitStack] = {}
"""What puts the own code of a library back, by the library's name."""
_lock = threading.RLock()


def accelerate(peer: str) -> None:
    """Runs the transforms of an installed library on fastgen's kernels, until ``restore``.

    Models of that library, those that exist and those made later, keep their classes, parameters and state dicts; their
    values and gradients stay within float32 error. What fastgen has no kernel for (another argument, device or dtype)
    goes to the library's own code. A second call changes nothing.

    Args:
        peer: "nflows", "zuko", "normflows" or "FrEIA".

    Raises:
        ValueError: another name, or a version of the library that this one does not know.
        ModuleNotFoundError: the library is not installed.

    Example:
        >>> fastgen.accelerate("nflows")
        >>> fastgen.restore("nflows")
    """
    module = _module(peer)
    with _lock, ExitStack() as patches:
        if peer not in _accelerated:
            for owner, name, value in module.replacements():
                patches.enter_context(mock.patch.object(owner, name, value))
            _accelerated[peer] = patches.pop_all()


def restore(peer: str) -> None:
    """Undoes ``accelerate``; a library that was not accelerated is left as it is.

    Raises:
        ValueError: a name that ``accelerate`` does not know.
        ModuleNotFoundError: the library is not installed.
    """
    _module(peer)
    with _lock:
        if peer in _accelerated:
            _accelerated.pop(peer).close()


@contextmanager
def accelerated(peer: str) -> Iterator[None]:
    """Runs ``accelerate`` within a block; a library that was accelerated before stays so after it.

    Raises:
        ValueError, ModuleNotFoundError: as ``accelerate``.

    Example:
        >>> with fastgen.accelerated("nflows"):
        ...     pass
    """
    before = peer in _accelerated
    accelerate(peer)
    try:
        yield
    finally:
        if not before:
            restore(peer)


def _module(peer: str):
    if peer not in PEERS:
        raise ValueError(f"peer must be one of {', '.join(map(repr, PEERS))}, got {peer!r}")
    if importlib.util.find_spec(peer) is None:
        raise ModuleNotFoundError(f"{peer} is not installed: pip install {peer}", name=peer)
    return importlib.import_module(f"fastgen.interop.{PEERS[peer]}")


def __getattr__(name: str):
    if name == "glow_checkpoints":
        return importlib.import_module("fastgen.interop.glow_checkpoints")
    raise AttributeError(f"module 'fastgen.interop' has no attribute {name!r}")
