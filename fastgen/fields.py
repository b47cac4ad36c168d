"""JSON from files, parsed and compared with the types of a dataclass before anything is made of it."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from math import inf
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_NUMBERS = {int: Integral, float: Real}
_LARGEST = 1 << 62


def parse_object(text: str | bytes, name: str) -> dict[str, Any]:
    """The JSON object in ``text``; raises ValueError, with ``name`` first, where it is something else."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be JSON, got {one_line(error)}") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{name} must be a JSON object, got {type(parsed).__name__}")
    return parsed


def one_line(error: BaseException) -> str:
    """The first line of an error's message, of 200 characters at most."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def check_fields(kind: type, values: Any) -> dict[str, Any]:
    """``values`` as arguments of the dataclass ``kind``: lists are tuples then.

    Raises:
        ValueError: a name is missing or not known, or a value is of another type; the message names it.
    """
    if not isinstance(values, dict):
        raise ValueError(f"the fields of {kind.__name__} must be a JSON object, got {type(values).__name__}")
    known = {field.name: field for field in fields(kind)}
    if unknown := sorted(map(str, values.keys() - known.keys())):
        raise ValueError(f"{', '.join(unknown):.200}: no such field in {kind.__name__}; it has {', '.join(known)}")
    types = get_type_hints(kind)
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{name} is missing; {kind.__name__} needs it")
        if name in values and not fits(types[name], values[name]):
            raise ValueError(f"{name} must be of type {field.type}, got {values[name]!r:.100}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def fits(kind: Any, value: Any) -> bool:
    """Returns whether a value is of a type: numbers, texts, ``Literal``, tuples (also as lists), unions, dataclasses.

    Booleans are no numbers; numbers are no larger than 2**62, but for the infinity of a norm's exponent.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(one, value) for one in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return len(value) == len(kinds) and all(map(fits, kinds, value))
    if kind in _NUMBERS:
        number = isinstance(value, _NUMBERS[kind]) and not isinstance(value, bool)
        return number and (-_LARGEST <= value <= _LARGEST or (kind is float and value == inf))
    return isinstance(value, (str, Path) if kind is Path else kind)
