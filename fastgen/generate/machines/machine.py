"""The interface of machines, and the machines by name."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

import fastgen
from fastgen.generate.arguments import check_integer
from fastgen.generate.heads import Head
from fastgen.generate.ir.program import Program
from fastgen.generate.machines.batch import GenerationBatch

MOST_THREADS = 1024


class Machine(Protocol):
    """Runs a step program for a head. The reference machine says what each step means."""

    @property
    def state_stride(self) -> int:
        """Numbers between two samples' states in a batch."""
        ...

    def memory(self) -> int:
        """Returns the bytes of the machine's copy of the weights."""
        ...

    def runs_blocks(self, batch: int) -> bool:
        """Whether sums over earlier cells are taken for several steps at once in a batch of this size."""
        ...

    def prologue(self, run: GenerationBatch) -> None:
        """Computes what depends on no drawn element."""
        ...

    def advance(self, run: GenerationBatch, t0: int, t1: int) -> None:
        """Runs the steps ``t0 .. t1 - 1``."""
        ...

    def absorb(self, run: GenerationBatch, t0: int, t1: int) -> None:
        """Runs steps whose elements are all known."""
        ...

    def refresh(self, weights: Tensor, constants: Tensor) -> None:
        """Takes new weights and constants of the same sizes."""
        ...


def check_threads(threads: int | None) -> int:
    """Returns the number of threads, PyTorch's by default.

    Raises:
        ValueError: it is no integer in 1 .. 1024.
    """
    return torch.get_num_threads() if threads is None else check_integer("threads", threads, 1, MOST_THREADS)


def default_machine() -> str:
    """Returns "cpu" where the extension is there, else "reference"."""
    return "cpu" if fastgen.extension_error is None else "reference"


def make_machine(name: str, program: Program, head: Head, weights: str) -> Machine:
    """Returns the machine ``name`` ("cpu" or "reference") with a program loaded.

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
