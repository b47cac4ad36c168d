"""Compiles everything that runs on a GPU, without one: the CUDA sources with nvcc, the Triton kernels with Triton.

For sm_80 and sm_90(a). Prints what ptxas says of each kernel: registers, shared memory, bytes of spill stores and spill
loads. Fails where a kernel spills.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"
KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def run(command: list[str]) -> str:
    """The command's output and errors together; the caller's exit if it fails."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(command)}\n{result.stdout}")
    return result.stdout


def report(ptxas_output: str, dynamic_shared: int = 0) -> list[str]:
    """Prints the kernels of ``ptxas -v``; returns those that spill."""
    kernels = list(KERNEL.finditer(ptxas_output))
    if not kernels:
        sys.exit(f"ptxas reports no kernel:\n{ptxas_output}")
    spilling = []
    for kernel in kernels:
        name, architecture, stores, loads = kernel["name"], kernel["architecture"], kernel["stores"], kernel["loads"]
        static = re.search(r"(\d+) bytes smem", kernel["rest"])
        shared = dynamic_shared + (int(static[1]) if static else 0)
        print(f"  {architecture:6} {name[-64:]:64} {kernel['registers']:>3} registers {shared:6} B shared", end="")
        print(f" {stores} + {loads} B spilled")
        if int(stores) + int(loads):
            spilling.append(f"{name} on {architecture}")
    return spilling


def check_nvcc(folder: Path) -> list[str]:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("CUDA sources: NOT CHECKED, nvcc is not on the PATH")
        return []
    print("CUDA sources, with", run([nvcc, "--version"]).splitlines()[-1])
    flags = ["-O3", "-std=c++17", "-DUSE_CUDA", STABLE_ABI, "-Werror", "all-warnings", f"-I{ROOT / 'csrc'}"]
    flags += ["-isystem", str(Path(torch.__file__).parent / "include")]
    spilling = []
    for source in sorted((ROOT / "csrc" / "cuda").rglob("*.cu")):
        for architecture in ("sm_80", "sm_90a"):
            target = ["-Xptxas", "-v", f"-arch={architecture}", "-cubin", "-o", str(folder / "kernel.cubin")]
            spilling += report(run([nvcc, *flags, *target, str(source)]))
    for source in sorted((ROOT / "csrc" / "cuda").rglob("*.cpp")):
        run([nvcc, *flags, "-c", str(source), "-o", str(folder / "launcher.o")])
        print(f"  host   {source.name}")
    return spilling


def check_triton() -> list[str]:
    if importlib.util.find_spec("triton") is None:
        print("Triton kernels: NOT CHECKED, Triton is not installed")
        return []
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    import fastgen.triton_kernels

    print("Triton kernels, with Triton", triton.__version__)
    triton.knobs.compilation.always_compile = True  # the cache keeps no log
    triton.knobs.nvidia.dump_ptxas_log = True
    spilling = []
    kernels = [module for module in pkgutil.iter_modules(fastgen.triton_kernels.__path__) if module.name != "_math"]
    for module in kernels:
        for kernel, types, constants in importlib.import_module(f"fastgen.triton_kernels.{module.name}").COMPILED:
            parameters = {name: value for name, value in constants.items() if name in kernel.arg_names}
            options = {name: value for name, value in constants.items() if name not in kernel.arg_names}
            signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
            for capability in (80, 90):
                source = ASTSource(fn=kernel, signature=signature, constexprs=parameters)
                with redirect_stdout(io.StringIO()) as log:
                    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
                spilling += report(log.getvalue(), compiled.metadata.shared)
    return spilling


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        spilling = check_nvcc(Path(name)) + check_triton()
    if spilling:
        sys.exit("kernels spill:\n" + "\n".join(spilling))
