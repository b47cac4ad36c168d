"""Builds the one compiled extension, ``fastgen._C``, with ninja: parallel, incremental, with per-file flags.

Instruction sets are chosen at run time. The files named ``*_simd.cpp`` are compiled for the machine's baseline and, on
x86-64, for AVX2 and AVX-512 beside it (csrc/common/isa.h).

Environment: ``FASTGEN_CUDA=1`` insists on the CUDA sources and ``0`` leaves them out; by default they are built where
torch is a CUDA build and ``nvcc`` is found. ``FASTGEN_SANITIZE``, such as ``address,undefined`` or ``thread``, builds
with these sanitizers: for ``make sanitize``, in a copy of the tree. ``FASTGEN_OP`` compiles the sources of one op alone
and links them with the objects that are there: for ``make build-op``. ``MAX_JOBS`` limits the parallel compilations.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
X86 = platform.machine() in ("x86_64", "AMD64")
COMMON = (
    "-O3 -std=c++17 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno "
    "-Wall -Wextra -Wno-unused-parameter -Wno-psabi"
)
if SANITIZE := os.environ.get("FASTGEN_SANITIZE", ""):
    COMMON += f" -O1 -g1 -fno-omit-frame-pointer -fsanitize={SANITIZE} -fno-sanitize-recover=all"
ISA_FLAGS = {"baseline": ""}
if X86:
    ISA_FLAGS["avx2"] = "-mavx2 -mfma"
    # without GCC's false alarm, bug 105593
    ISA_FLAGS["avx512"] = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -Wno-maybe-uninitialized"
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"
NVCC_FLAGS = "-O3 -std=c++17 -DUSE_CUDA -Xcompiler -fPIC,-fvisibility=hidden -gencode arch=compute_80,code=sm_80 " + (
    "-gencode arch=compute_90a,code=sm_90a -gencode arch=compute_90,code=compute_90"
)


def version() -> str:
    return re.search(r'^__version__ = "(.+)"$', (ROOT / "fastgen" / "version.py").read_text(), re.MULTILINE)[1]


def with_cuda() -> bool:
    wanted = os.environ.get("FASTGEN_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise ValueError(f"FASTGEN_CUDA is {wanted!r}; it must be 0, 1 or unset")
    if wanted == "0":
        return False
    import torch

    missing = [] if torch.version.cuda else [f"torch {torch.__version__} is built without CUDA"]
    missing += [] if shutil.which("nvcc") else ["nvcc is not on the PATH"]
    if wanted and missing:
        raise RuntimeError(f"FASTGEN_CUDA=1, but {' and '.join(missing)}")
    return not missing


def variants(source: Path) -> dict[str, str]:
    """The suffixes of a source's objects, and the flags of each."""
    if not source.stem.endswith("_simd"):
        return {"": ""}
    return {f"_{isa}": f"-DFASTGEN_KERNEL_ISA={isa} {flags}" for isa, flags in ISA_FLAGS.items()}


def folder_of(source: Path) -> str:
    """The folder of a kernel's source: the name of its op, or ``machine``. "" for what is in neither."""
    return source.parts[2] if source.parts[1] in ("cpu", "cuda") else ""


def sources() -> list[Path]:
    csrc = ROOT / "csrc"
    found = [*csrc.glob("*.cpp"), *csrc.glob("common/*.cpp"), *csrc.glob("program/*.cpp"), *csrc.glob("cpu/**/*.cpp")]
    if with_cuda():
        found += [p for p in csrc.glob("cuda/**/*") if p.suffix in (".cu", ".cpp")]
    return sorted(p.relative_to(ROOT) for p in found)


class NinjaBuild(build_ext):
    """Writes a ``build.ninja`` and runs it; header dependencies come from the compiler."""

    def build_extension(self, extension: Extension) -> None:
        import pybind11
        import torch

        torch_root = Path(torch.__file__).parent
        includes = [ROOT / "csrc", pybind11.get_include(), torch_root / "include", sysconfig.get_path("include")]
        # -isystem: warnings are for our own sources
        include_flags = f"-I{includes[0]} " + " ".join(f"-isystem {path}" for path in includes[1:])
        defines = f"{STABLE_ABI} -DFASTGEN_VERSION='\"{version()}\"'" + (" -DFASTGEN_X86" if X86 else "")
        target = Path(self.get_ext_fullpath(extension.name)).absolute()
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = ROOT / "build" / f"ninja-{sysconfig.get_config_var('SOABI')}"
        folder.mkdir(parents=True, exist_ok=True)
        libraries = f"-L{torch_root / 'lib'} -ltorch -ltorch_cpu -lpthread"
        if sys.platform == "darwin":
            libraries += " -undefined dynamic_lookup"
        compiler = os.environ.get("CXX", "c++")
        linker = compiler
        if SANITIZE:
            libraries += f" -fsanitize={SANITIZE}"
        if any(Path(source).suffix == ".cu" for source in extension.sources):
            linker = "nvcc"
            libraries += " -ltorch_cuda"
        lines = [
            "ninja_required_version = 1.5",
            f"flags = {include_flags} {defines}",
            "rule cxx",
            f"  command = {compiler} -MMD -MF $out.d {COMMON} $isa $flags -c $in -o $out",
            "  description = compiling $source",
            "  deps = gcc",
            "  depfile = $out.d",
            "rule nvcc",
            f"  command = nvcc -MD -MF $out.d {NVCC_FLAGS} $flags -c $in -o $out",
            "  description = compiling $source",
            "  deps = gcc",
            "  depfile = $out.d",
            "rule link",
            f"  command = {linker} -shared $in {libraries} -o $out",
            "  description = linking $out",
        ]
        objects: dict[str, list[Path]] = {}
        for source in map(Path, extension.sources):
            rule = "nvcc" if "cuda" in source.parts else "cxx"
            name = folder / source.relative_to("csrc")
            for suffix, flags in variants(source).items():
                compiled = name.with_name(f"{source.stem}{suffix}{source.suffix}.o")
                objects.setdefault(folder_of(source), []).append(compiled)
                lines.append(f"build {compiled}: {rule} {ROOT / source}")
                lines.append(f"  source = {source}")
                lines.append(f"  isa = {flags}")
        every = [path for paths in objects.values() for path in paths]
        lines.append(f"build {target}: link {' '.join(map(str, every))}")
        lines += [f"build {op}: phony {' '.join(map(str, paths))}" for op, paths in objects.items() if op]
        ninja = [sys.executable, "-m", "ninja", "-C", str(folder)]
        ninja += ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        with open(folder / "lock", "w") as lock:  # two builds at once would write the same objects
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "build.ninja").write_text("\n".join(lines) + "\n")
            if not (op := os.environ.get("FASTGEN_OP", "")):
                subprocess.run([*ninja, str(target)], check=True)
                return
            if op not in objects:
                names = ", ".join(sorted(filter(None, objects)))
                raise ValueError(f"FASTGEN_OP must be one of {names}, got {op!r}")
            needed = [path for name in ("", "machine") for path in objects[name] if not path.exists()]
            subprocess.run([*ninja, op, *map(str, needed)], check=True)
            present = [str(path) for path in every if path.exists()]
            subprocess.run([linker, "-shared", *present, *shlex.split(libraries), "-o", str(target)], check=True)


def packages() -> dict[str, str]:
    """Package -> folder. ``triton_kernels`` and ``bench`` live beside ``fastgen`` and are installed inside it."""
    names = find_packages(str(ROOT), include=["fastgen", "fastgen.*", "triton_kernels", "bench", "bench.*"])
    return {name if name.startswith("fastgen") else f"fastgen.{name}": name.replace(".", "/") for name in names}


setup(
    version=version(),
    packages=list(packages()),
    package_dir=packages(),
    ext_modules=[Extension("fastgen._C", [str(path) for path in sources()])],
    cmdclass={"build_ext": NinjaBuild},
)
