"""The machines by name, and what they are given."""

from __future__ import annotations

import torch

import fastgen
from fastgen.generate.arguments import check_integer
from fastgen.generate.heads import Head
from fastgen.generate.ir.program import Program

MOST_THREADS = 1024


def check_threads(threads: int | None) -> int:
    """The number of threads, PyTorch's by default.

    Raises:
        ValueError: it is no integer in 1 .. 1024.
    """
    return torch.get_num_threads() if threads is None else check_integer("threads", threads, 1, MOST_THREADS)


def default_machine() -> str:
    return "cpu" if fastgen.extension_error is None else "reference"


def make_machine(name: str, program: Program, head: Head, weights: str):
    """The machine ``name`` ("cpu" or "reference") with a program loaded.

    Raises:
        ValueError: the name is unknown, or the machine needs the compiled extension, which is not there.
    """
    if name == "reference":
        from fastgen.generate.machines.reference import ReferenceMachine

        return ReferenceMachine(program, head, weights)
    if name == "cpu":
        if fastgen.extension_error is not None:
            raise ValueError(
                f"machine 'cpu' needs the compiled extension, which is not there: {fastgen.extension_error}"
            )
        from fastgen.generate.machines.cpu import CpuMachine

        return CpuMachine(program, head, weights)
    raise ValueError(f"machine must be 'cpu' or 'reference', got {name!r}")
