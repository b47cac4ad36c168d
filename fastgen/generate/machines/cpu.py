"""The machine that runs step programs on the CPU: C++, no Python and no allocation per step."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from fastgen.generate.heads import Custom, Head
from fastgen.generate.ir.program import Program
from fastgen.generate.machines.batch import FEW_SAMPLES, GenerationBatch, state_stride
from fastgen.generate.machines.draw_position import draw_position


class CpuMachine:
    """Runs a step program by ``fastgen._C``; the results of ``ReferenceMachine`` but for the rounding of float32 sums.

    Every output is summed in one fixed order, so a sample is bitwise the same for any batch size, number of threads and
    split of the steps into calls, on one instruction set.

    Args:
        program: the step program.
        head: draws and scores.
        weights: "float32"; or "bfloat16" or "int8" (symmetric, one float32 scale a column), which round only weights.

    Raises:
        ValueError: a record of the program points outside its table, buffer or matrix; an unknown format of weights.
        ImportError: the package was built without its C++ extension.
    """

    def __init__(self, program: Program, head: Head, weights: str = "float32") -> None:
        from fastgen import _C

        self.program = program
        self.head = head
        self.weight_format = weights
        self._machine = _C.Machine(program.tables(), head.spec(), weights)

    @property
    def state_stride(self) -> int:
        """Numbers between two samples' states in a batch."""
        return state_stride(self.program.state_size)

    def memory(self) -> int:
        """Returns the bytes of the packed weights; a step of one sample reads those that it needs, once."""
        return self._machine.packed_bytes

    def runs_blocks(self, batch: int) -> bool:
        """Whether sums over earlier cells are taken for several steps at once."""
        return batch <= FEW_SAMPLES

    def prologue(self, run: GenerationBatch) -> None:
        """Computes what depends on no drawn element: once, before the first step."""
        self._machine.prologue(self._arrays(run), run)

    def advance(self, run: GenerationBatch, t0: int, t1: int) -> None:
        """Runs the steps ``t0 .. t1 - 1`` of a run that stands before step t0.

        An interrupt (Ctrl-C, or whatever a signal's handler raises in the main thread) ends the call in a tenth of a
        second or so: after a step where a step is short, and then ``run.step`` tells which and the run can go on.

        Raises:
            ValueError: a tensor of ``run`` has the wrong dtype or shape; the steps are out of range; the network's
                output is NaN; an index is outside its table; a known level is no level.
            RuntimeError: another thread is advancing the run, or an exception left it within a step; the system
                refuses another thread.
            Exception: whatever the functions of a ``Custom`` head raise.
            MemoryError: there is no memory for a thread's scratch.
        """
        self._machine.advance(self._arrays(run), run, t0, t1)

    def absorb(self, run: GenerationBatch, t0: int, t1: int) -> None:
        """``advance`` for steps whose elements are all known, in batches of up to ``program.lookahead`` steps.

        Raises:
            ValueError: an element drawn at one of these steps is not known; or as ``advance``.
        """
        self._machine.absorb(self._arrays(run), run, t0, t1)

    def refresh(self, weights: Tensor, constants: Tensor) -> None:
        """Takes new float arenas; raises ValueError unless their sizes are the old ones'."""
        self._machine.refresh(weights.detach().numpy(), constants.detach().numpy())

    def _arrays(self, run: GenerationBatch) -> SimpleNamespace:
        """Returns the run with its tensors as arrays on the same memory, and the function by which Python draws."""

        def array(value):
            if isinstance(value, Tensor):
                return value.detach().numpy()
            return [array(v) for v in value] if isinstance(value, list) else value

        def draw(parameters: np.ndarray, position: int, channel0: int, channels: int) -> np.ndarray:
            return draw_position(self.head, run, torch.from_numpy(parameters), position, channel0, channels).numpy()

        arrays = SimpleNamespace(**{name: array(value) for name, value in vars(run).items()})
        arrays.draw_position = draw if isinstance(self.head, Custom) else None
        return arrays
