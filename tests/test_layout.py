"""The house keeps its order: every op is on every floor, imports run one way, files have one subject."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import fastgen.ops
from fastgen.ops.registry import OPS

ROOT = Path(__file__).parents[1]
PACKAGES = ("fastgen", "triton_kernels", "bench")

# part of fastgen -> the parts it may import; "" is fastgen/__init__.py itself
ALLOWED = {
    "version": set(),
    "eval_mode": set(),
    "fields": set(),
    "triton_kernels": set(),
    "reference": set(),
    "ops": {"", "reference", "triton_kernels"},
    "distributions": {"", "reference", "ops"},
    "nn": {"", "reference", "ops", "distributions"},
    "generate": {"", "_C", "version", "eval_mode", "fields", "reference", "ops", "distributions"},
    "models": {"", "version", "fields", "ops", "nn", "distributions", "generate"},
    "data": {"", "fields"},
    "plots": {"", "generate"},
    "metrics": {"", "eval_mode", "data", "distributions", "models"},
    "training": {"", "version", "fields", "data", "distributions", "generate", "metrics", "models", "plots"},
    "interop": {"", "fields", "ops", "nn", "distributions", "generate", "models"},
}
TOP = {"", "__main__", "cli", "demo", "bench"}

LONG = 400


def files(*patterns: str, folders=(*PACKAGES, "tests", "csrc")) -> list[Path]:
    return [p.relative_to(ROOT) for folder in folders for pattern in patterns for p in (ROOT / folder).rglob(pattern)]


def part(path: Path) -> str:
    """The part of fastgen a file belongs to: its subpackage, or its name at the top of the package."""
    if path.parts[0] != "fastgen":
        return path.parts[0]
    return "" if path.name == "__init__.py" and len(path.parts) == 2 else path.with_suffix("").parts[1]


def imports(path: Path) -> set[str]:
    """Dotted names that the file imports, inside functions too; relative ones resolved."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*path.parent.parts[: len(path.parent.parts) - node.level + 1]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def imported_parts(path: Path) -> set[str]:
    known = set(ALLOWED) | TOP | {"_C"}
    parts = {name.split(".")[1] if "." in name else "" for name in imports(path) if name.split(".")[0] == "fastgen"}
    return {p if p in known else "" for p in parts} - {part(path)}


def test_no_part_of_the_package_is_unknown_to_this_test():
    assert {part(p) for p in files("*.py", folders=PACKAGES)} <= set(ALLOWED) | TOP


@pytest.mark.parametrize("name", ALLOWED)
def test_imports_run_one_way(name):
    wrong = {
        str(path): sorted(upward)
        for path in files("*.py", folders=PACKAGES)
        if part(path) == name and (upward := imported_parts(path) - ALLOWED[name])
    }
    assert wrong == {}


def test_the_allowed_imports_have_no_cycle():
    order: list[str] = []
    while rest := [name for name in ALLOWED if name not in order]:
        free = [name for name in rest if not (ALLOWED[name] & set(rest))]
        assert free, f"these import one another: {rest}"
        order += free


# the rooms of a part, and the files beside them, from the ground up: each may import those above it in this list
ROOMS = {
    "generate": (
        "errors arguments step_rules orders noise progress on_cpu contexts context_network heads ir options known "
        "frontend request schedule lower machines passes compile compiled_network files inspect "
        "state streaming textbook verification sampler report"
    ),
    "nn": (
        "derived_buffers recomputation value_checks flow normalization linear elementwise causal networks reshape "
        "autoregressive coupling posterior residual continuous quantization"
    ),
}


def room(path: Path) -> str:
    return path.with_suffix("").parts[2]


def imported_files(path: Path) -> set[Path]:
    """The files of the package whose names a file imports, inside functions and for type checkers too."""
    found = set()
    for name in imports(path):
        parts = name.split(".")
        stems = ["/".join(parts), "/".join(parts[:-1])]
        ways = [Path(stem + end) for stem in stems if stem for end in (".py", "/__init__.py")]
        found |= {next((way for way in ways if (ROOT / way).exists()), path)}
    return found - {path}


@pytest.mark.parametrize("name", ROOMS)
def test_rooms_import_one_way(name):
    rooms = ROOMS[name].split()
    inside = [p for p in files("*.py", folders=[f"fastgen/{name}"]) if p.parts[2] != "__init__.py"]
    assert {room(p) for p in inside} == set(rooms)
    wrong = {
        str(path): [str(other) for other in imported_files(path) & set(inside) if room(other) not in allowed]
        for path in inside
        if (allowed := rooms[: rooms.index(room(path)) + 1])
    }
    assert {path: others for path, others in wrong.items() if others} == {}


def test_no_files_import_one_another():
    arrows = {path: imported_files(path) for path in files("*.py", folders=["fastgen"])}
    arrows = {path: {other for other in others if other in arrows} for path, others in arrows.items()}
    while free := [path for path, others in arrows.items() if not others & set(arrows)]:
        for path in free:
            del arrows[path]
    assert sorted(map(str, arrows)) == []


def test_private_names_stay_in_their_file():
    wrong = {
        str(path): sorted(name for name in imports(path) if name.startswith("fastgen.") and private.search(name))
        for path in files("*.py", folders=PACKAGES)
        if (private := re.compile(r"\._(?!C\b|_)"))
    }
    assert {path: names for path, names in wrong.items() if names} == {}


def test_nobody_imports_triton_kernels_under_its_bare_name():
    outside = [p for p in files("*.py") if p.parts[0] != "triton_kernels"]
    bare = [str(p) for p in outside if any(name.split(".")[0] == "triton_kernels" for name in imports(p))]
    assert bare == []


PUBLIC = {name: op for name, op in OPS.items() if not op.part_of}
OVER_OPS = {"hutchinson_trace"}
"""Functions over ops: they take a callable, so they have no schema; a kernel only for callables that they know."""


@pytest.mark.parametrize("op", PUBLIC.values(), ids=PUBLIC)
def test_an_op_is_on_every_floor(op):
    floors = {"reference": "fastgen/reference/{}.py", "ops": "fastgen/ops/{}.py"}
    floors |= {"cpu": "csrc/cpu/{0}/{0}.cpp", "triton": "triton_kernels/{0}.py"}
    floors |= {"tests": "tests/ops/test_{}.py", "bench": "bench/ops/bench_{}.py"}
    assert set(op.absent) <= {"cpu", "triton"}
    for floor, pattern in floors.items():
        exists = (ROOT / pattern.format(op.name)).exists()
        assert exists != (floor in op.absent), f"{op.name}: {pattern.format(op.name)}"
    if op.not_differentiable:
        assert "opcheck" in (ROOT / floors["tests"].format(op.name)).read_text()
    else:  # tests/ops/test_contract.py asks every op the same
        cases = importlib.import_module(f"fastgen.reference.{op.name}").CASES
        assert any(name.startswith("small") for name in cases)
        assert len(cases) > 5


@pytest.mark.parametrize("name", OVER_OPS)
def test_a_function_over_ops_is_on_the_floors_that_need_no_kernel(name):
    floors = ("fastgen/reference/{}.py", "fastgen/ops/{}.py", "tests/ops/test_{}.py", "bench/ops/bench_{}.py")
    assert [floor for floor in floors if not (ROOT / floor.format(name)).exists()] == []
    assert (getattr(fastgen.ops, name).__doc__ or "").count("\n") > 5


@pytest.mark.parametrize("op", PUBLIC.values(), ids=PUBLIC)
def test_an_op_has_a_fake_and_a_documented_public_function(op):
    import torch

    assert op.composite or torch._C._dispatch_has_kernel_for_dispatch_key(f"fastgen::{op.name}", "Meta")
    assert (getattr(fastgen.ops, op.name).__doc__ or "").count("\n") > 5


@pytest.mark.parametrize("folder", ["fastgen/reference", "triton_kernels", "bench/ops"])
def test_every_file_of_a_floor_belongs_to_an_op(folder):
    names = {p.stem.removeprefix("bench_") for p in (ROOT / folder).glob("*.py")} - {"__init__", "_math"}
    assert names <= set(PUBLIC) | OVER_OPS


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_kernel_file_lies_with_its_op(device):
    """In the op's folder, under its name, or that and a part's; ``spline`` is shared by the splines."""
    sources = [p for folder in (ROOT / "csrc" / device).iterdir() if folder.is_dir() for p in folder.glob("*.*")]
    rooms = set(PUBLIC) | OVER_OPS | {"machine", "spline"}
    assert {p.parent.name for p in sources} <= rooms
    assert [str(p) for p in sources if not f"{p.stem}_".startswith(f"{p.parent.name}_")] == []


def test_every_head_has_a_case_that_the_laws_of_heads_run_over():
    from fastgen.generate.heads import Head
    from tests.generate.head_cases import HEADS

    def concrete(base: type) -> set[type]:
        found = {kind for below in base.__subclasses__() for kind in concrete(below)}
        return found if inspect.isabstract(base) else found | {base}

    assert {type(head) for head, _ in HEADS.values()} == concrete(Head)


def test_every_model_is_made_by_a_test_of_models():
    import fastgen

    words = set(re.findall(r"\w+", "".join((ROOT / p).read_text() for p in files("*.py", folders=["tests/models"]))))
    assert [name for name in fastgen.list_models() if name not in words] == []


def test_every_pass_has_a_test_of_its_own():
    passes = {p.stem for p in (ROOT / "fastgen/generate/passes").glob("*.py")} - {"__init__"}
    assert [name for name in passes if not (ROOT / f"tests/generate/test_{name}.py").exists()] == []


def test_places_in_tensors_of_2_31_elements_do_not_overflow():
    """A Triton program's number is 64 bits wide before it is multiplied or divided, or the launcher refuses them."""
    narrow = re.compile(r"tl\.program_id\(\d\)\s*[*/%]")
    sources = {str(p): (ROOT / p).read_text() for p in files("*.py", folders=["triton_kernels"])}
    assert [path for path, text in sources.items() if narrow.search(text) and "1 << 31" not in text] == []


def test_a_file_has_one_subject():
    lengths = {str(p): len((ROOT / p).read_text().splitlines()) for p in files("*.py", "*.cpp", "*.h", "*.cu")}
    assert {path: length for path, length in lengths.items() if length > LONG} == {}


def test_nothing_is_called_utils():
    assert [str(p) for p in files("*utils*", "*helpers*", "*misc*")] == []


def test_every_folder_with_python_is_a_package():
    folders = {p.parent for p in files("*.py", folders=PACKAGES)}
    assert [str(folder) for folder in folders if not (ROOT / folder / "__init__.py").exists()] == []


def test_no_torch_header_outside_the_op_kernels_and_launchers():
    allowed = {p.relative_to(ROOT) for p in (ROOT / "csrc" / "cpu").glob("*/*.cpp") if not p.stem.endswith("_simd")}
    allowed |= set(files("*_launcher.cpp", "*_launcher.h", folders=["csrc"]))
    sources = files("*.cpp", "*.h", "*.cu", folders=["csrc"])
    assert [str(p) for p in sources if p not in allowed and "#include <torch" in (ROOT / p).read_text()] == []


def test_torch_headers_are_the_stable_ones():
    included = [
        line.split("<")[1].rstrip(">").strip()
        for path in files("*.cpp", "*.h", "*.cu", folders=["csrc"])
        for line in (ROOT / path).read_text().splitlines()
        if line.startswith(("#include <torch", "#include <ATen", "#include <c10"))
    ]
    stable = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/c/")
    assert [header for header in included if not header.startswith(stable)] == []


@pytest.mark.needs_extension
def test_code_of_one_instruction_set_is_not_shared_with_the_others():
    """The linker keeps one copy of a weak (inline, template) function; an AVX-512 copy would crash an older machine."""
    objects = list(ROOT.glob("build/ninja-*/**/*_avx*.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip("no objects of an AVX build here, or no nm to read them")
    weak = {
        path.name: [line for line in symbols.splitlines() if line.split()[-2] in ("W", "V", "u")]
        for path in objects
        if (symbols := subprocess.run(["nm", str(path)], capture_output=True, text=True, check=True).stdout)
    }
    assert not any(weak.values()), weak
