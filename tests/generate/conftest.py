from __future__ import annotations

import pytest

from fastgen.generate.compile import pipeline
from fastgen.generate.ir.verify_graph import GraphError, verify


@pytest.fixture(autouse=True)
def verified_between_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every graph that a test compiles is verified after each pass."""

    def check(name, graph, draws) -> None:
        try:
            verify(graph, [piece for draw in draws for piece in draw.pieces])
        except GraphError as error:
            raise GraphError(f"after {name}: {error}") from error

    monkeypatch.setattr(pipeline, "after_pass", check)
