"""Checks that a library's functions are the known ones, by their source text rather than a version number."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping


def digest(function: Callable) -> str:
    """First 16 hex digits of the SHA-256 of a function's source; empty where there is none."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def check_known(library: str, functions: Mapping[str, Callable], known: Mapping[str, tuple[str, ...]]) -> None:
    """Raises an error for a library whose functions differ from those that the replacements were written for.

    Args:
        library: its name and known versions, for the message.
        functions: name -> function of the installed library.
        known: name -> digests of the sources that are known.

    Raises:
        ValueError: a function is missing or has another source.
    """
    for name, digests in known.items():
        if name not in functions or digest(functions[name]) not in digests:
            raise ValueError(f"the installed library must be {library}, got one whose {name} has another source")
