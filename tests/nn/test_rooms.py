"""The rooms of ``fastgen.nn``: imports between them run one way, and private names stay in their file."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

NN = Path(__file__).parents[2] / "fastgen" / "nn"
FILES = {".".join(("fastgen.nn", *p.relative_to(NN).with_suffix("").parts)): p for p in NN.rglob("[!_]*.py")}
ROOMS = {p.name for p in NN.iterdir() if (p / "__init__.py").exists()}


def imports(path: Path) -> list[ast.ImportFrom]:
    """Returns the imports of a file, those inside of functions and under ``TYPE_CHECKING`` too."""
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.module]


def targets(node: ast.ImportFrom) -> set[str]:
    """Returns the files of ``fastgen.nn`` that a line imports."""
    return {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} & FILES.keys()


def room(module: str) -> str:
    """Returns a file's room; a file at the base of ``fastgen.nn`` is a room of its own."""
    return module.split(".")[2]


def test_rooms_and_files_import_one_another_one_way():
    files = {name: {target for node in imports(path) for target in targets(node)} for name, path in FILES.items()}
    rooms: dict[str, set[str]] = {}
    for name, found in files.items():
        rooms.setdefault(room(name), set()).update({room(target) for target in found} - {room(name)})
    TopologicalSorter(files).prepare()  # raises CycleError
    TopologicalSorter(rooms).prepare()


def test_the_base_imports_no_room():
    upward = {
        name: sorted(found)
        for name, path in FILES.items()
        if room(name) not in ROOMS
        and (found := {target for node in imports(path) for target in targets(node) if room(target) in ROOMS})
    }
    assert upward == {}


@pytest.mark.parametrize("module", FILES)
def test_no_private_name_is_imported(module):
    names = [alias.name for node in imports(FILES[module]) if node.module.startswith("fastgen") for alias in node.names]
    assert [name for name in names if name.startswith("_")] == []
