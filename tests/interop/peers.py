"""The libraries that fastgen accelerates, as tests import them."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest


def import_peer(name: str) -> ModuleType:
    """Imports a module of a peer. Where it is missing the tests are skipped, or fail if FASTGEN_REQUIRE_PEERS=1."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        if os.environ.get("FASTGEN_REQUIRE_PEERS") == "1":
            raise
        pytest.skip(f"{name.partition('.')[0]} is not installed", allow_module_level=True)
