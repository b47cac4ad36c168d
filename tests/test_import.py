from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter at the root of the checkout."""
    variables = {k: v for k, v in os.environ.items() if k != "FASTGEN_NO_EXTENSION"} | environment
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True)


def printed(code: str, **environment: str) -> str:
    result = python(code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_loads_neither_triton_nor_the_optional_packages():
    heavy = ["triton", "tyro", "lightning_fabric", "matplotlib", "sklearn", "PIL", "soundfile", "fastgen.models"]
    code = f"import sys, fastgen.ops; fastgen.backends(); print([m for m in {heavy} if m in sys.modules])"
    assert printed(code) == "[]"


def test_import_works_without_the_extension():
    code = """
import torch, fastgen
from fastgen.ops import philox_uniform
noise = philox_uniform(0, torch.arange(1), torch.arange(1), 0, 0)
print(fastgen.extension_error, '|', fastgen.backends()[0].backend, '|', noise.shape)
try:
    from fastgen import _C
except ImportError as error:
    print(error)
"""
    lines = printed(code, FASTGEN_NO_EXTENSION="1").splitlines()
    assert lines[0] == "FASTGEN_NO_EXTENSION is set | reference | torch.Size([1, 1])"
    assert lines[1] == "the compiled extension fastgen._C is not available: FASTGEN_NO_EXTENSION is set"


def test_import_works_without_triton():
    code = """
import sys; sys.modules['triton'] = None
import torch, fastgen
from fastgen.ops import philox_uniform
philox_uniform(0, torch.arange(1), torch.arange(1), 0, 0)
try:
    with fastgen.backend('triton'):
        philox_uniform(0, torch.arange(1), torch.arange(1), 0, 0)
except RuntimeError as error:
    print(error)
"""
    assert "Triton is not installed" in printed(code)


def test_triton_kernels_are_not_importable_under_their_bare_name():
    result = python("import triton_kernels")
    assert result.returncode != 0
    assert "import them as 'fastgen.triton_kernels'" in result.stderr


@pytest.mark.parametrize("name", ["fastgen.triton_kernels", "fastgen.bench"])
def test_what_lives_beside_the_package_is_installed_inside_it(name):
    assert printed(f"import {name}; print({name}.__name__)") == name


def test_an_unknown_name_is_an_attribute_error():
    import fastgen

    with pytest.raises(AttributeError, match="module 'fastgen' has no attribute 'smapler'"):
        _ = fastgen.smapler


def test_import_alone_gives_every_subpackage_and_loads_none_before_it_is_looked_up():
    """Faults generation_22 and reports_lazy_modules."""
    folders = sorted(p.parent.name for p in (ROOT / "fastgen").glob("*/__init__.py"))
    code = f"""
import sys, fastgen
folders = {folders}
print([f for f in folders if f"fastgen.{{f}}" in sys.modules], sorted(set(folders) - set(dir(fastgen))))
print([f for f in folders if getattr(fastgen, f) is not sys.modules[f"fastgen.{{f}}"]])
"""
    assert printed(code).splitlines() == ["[] []", "[]"]


def test_import_alone_gives_every_name_that_the_documents_write():
    names = set()
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        names |= set(re.findall(r"\bfastgen(?:\.[A-Za-z_0-9]+)+", document.read_text()))
    assert "fastgen.generate.register_rule" in names
    code = "".join(f"import fastgen; {name}\n" for name in sorted(names))
    assert printed(code) == ""


def test_every_public_name_is_listed():
    import fastgen

    assert set(fastgen.__all__) <= set(dir(fastgen))


@pytest.mark.needs_extension
def test_the_extension_loads_and_knows_its_version():
    import fastgen
    from fastgen import _C

    assert _C.build_info()["version"] == fastgen.__version__
