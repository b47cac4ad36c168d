from __future__ import annotations

from pathlib import Path

import pytest

import fastgen
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


@pytest.fixture(params=[] if fastgen.extension_error else fastgen._C.isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set that this processor has."""
    monkeypatch.setenv("FASTGEN_ISA", request.param)
    assert fastgen._C.isa() == request.param
    return request.param


SLOW = {
    "cells", "cumulative_norm", "mamba", "own_cell", "retention", "rwkv", "wavernn_mels", "lstm_given_states",
    "associative_state_space", "flex_decoder", "pixelcnn_pp_port", "wavenet_batch_folded", "gated_pixelcnn_colour",
}  # fmt: skip
"""Cases that take long, and each of which is like another one: by default they are tried in one way only."""
ALWAYS = ("test_parameters_are_those_of_the_float64_forward", "cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what tries the cases of ``SLOW`` as slow, but for their parameters on the fast machine."""
    here = Path(__file__).parent
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if item.path.parent != here or parameters.get("name") not in SLOW:
            continue
        if (item.originalname, parameters.get("machine")) != ALWAYS:
            item.add_marker(pytest.mark.slow)
