"""The cells of ``docs/pytorch.md`` hold, and the page is what its tables say."""

from __future__ import annotations

import importlib.util
import re

import pytest
import torch
import torch.distributed as dist

from tests.nn.layer_cases import CASES
from tests.nn.process_columns import PROCESS_COLUMNS, failures_in_two_processes
from tests.nn.pytorch_columns import COLUMNS, compile_static
from tests.nn.pytorch_matrix import PAGE, page
from tests.nn.pytorch_refusals import REFUSALS

_QUICK = ("AffineCoupling with a mask", "RationalQuadraticSpline", "VectorQuantizer", "ActNorm", "Planar, amortized")
"""Layers whose slow cells are tried in every run: each once had a batch size, or a flag, baked into its graph."""

_CELLS = [
    pytest.param(name, column, marks=[pytest.mark.slow] if COLUMNS[column].slow and name not in _QUICK else [])
    for column in COLUMNS
    for name in CASES
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    yield
    torch._dynamo.reset()


def _is_as_the_table_says(name: str, column: str, failure: str | None) -> None:
    refusal = REFUSALS.get((name, column))
    if refusal is None:
        assert failure is None
    else:
        assert failure is not None, "it works now: take it out of the refusals, and write the page anew"
        assert failure.startswith(refusal.error)
        assert refusal.words in failure


@pytest.mark.filterwarnings("ignore")  # the compiler's, of its own code and of numbers that it does not trace
@pytest.mark.parametrize(("name", "column"), _CELLS)
def test_a_cell_is_as_the_page_says(name, column):
    """robustness_checkpoint_field, robustness_export_compile, robustness_meta_forward"""
    if "adaptive" in name and importlib.util.find_spec("torchdiffeq") is None:
        pytest.skip("torchdiffeq, which has the adaptive solvers, is not installed")
    failure = None
    try:
        COLUMNS[column].check(CASES[name])
    except Exception as error:  # of any kind: the table names it
        if (name, column) not in REFUSALS:
            raise
        failure = f"{type(error).__name__}: {error}"
    _is_as_the_table_says(name, column, failure)


@pytest.mark.skipif(not dist.is_available(), reason="torch is built without distributed")
@pytest.mark.slow
def test_two_processes_train_every_layer(tmp_path):
    failures = failures_in_two_processes(str(tmp_path), tuple(CASES))
    for name in CASES:
        for column in PROCESS_COLUMNS:
            _is_as_the_table_says(name, column, failures.get((name, column)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", _QUICK)
def test_inductor_generates_code_for_layers(name):
    compile_static(CASES[name], backend="inductor")


def test_refusals_are_of_cells():
    assert {name for name, _ in REFUSALS} <= set(CASES)
    assert {column for _, column in REFUSALS} <= {*COLUMNS, *PROCESS_COLUMNS}


def test_the_page_is_what_the_tables_say():
    assert PAGE.read_text() == page(), "run python -m tests.nn.pytorch_matrix"


def test_the_page_names_every_layer():
    assert re.findall(r"^\| ([^|]+) \|", PAGE.read_text(), re.MULTILINE) == ["layer", *CASES]
