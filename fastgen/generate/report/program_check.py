"""What the compiler says of a network, and whether its program is the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fastgen.generate.errors import CompileError, NotCausalError, VerificationError
from fastgen.generate.heads import Head
from fastgen.generate.report.samples import SampleComparison, compare_with_loop
from fastgen.generate.sampler import Sampler
from fastgen.generate.verification.self_check import Agreement, greatest_error, self_check


@dataclass(frozen=True)
class ProgramCheck:
    """The compiler's findings; of the program, those of comparing it with the module and the textbook loop."""

    not_causal: str = ""
    """The output that is needed before it is ready, with the layers on the way; empty where there is none."""
    not_compiled: str = ""
    """Why there is no program: the layer, the line, the reason and what to change; empty where there is one."""
    causality: str = ""
    """What ready times say of a causal network; empty where it is not known to be one."""
    mismatch: str = ""
    """Where the program is not the module, by the check that ``fastgen.Sampler`` makes; empty where it is."""
    agreement: Agreement | None = None
    """The program's greatest error."""
    samples: SampleComparison | None = None
    """Its samples beside the textbook loop's."""
    not_drawn: str = ""
    """Why there are no samples: where the network's output is no distribution; empty where there are some."""

    @property
    def compiled(self) -> bool:
        """Whether the network has a step program."""
        return not (self.not_causal or self.not_compiled)

    @property
    def passed(self) -> bool:
        """Whether the program is there, and it and its samples are the module's."""
        drawn = self.samples is not None and self.samples.wrong is None
        return self.compiled and not self.mismatch and drawn

    def __str__(self) -> str:
        if not self.compiled:
            return f"not compiled: {self.not_compiled or 'see ready times'}"
        if self.mismatch or self.agreement is None:
            return f"WRONG: {self.mismatch}"
        found = self.agreement
        at = found.position[0] if len(found.position) == 1 else found.position
        length = "" if found.length is None else f" of {found.length}"
        return (
            f"compiled; it is the module: greatest error {found.error:.2g}, at {at}{length} (step {found.step}), "
            f"where float32 may be {found.bound:.2g} off"
        )


def check_program(
    module: nn.Module, event_shape: Sequence[int], head: Head, options: dict, samples: int, seed: int, steps: int
) -> tuple[ProgramCheck, Sampler | None]:
    """Compiles a network and compares the program with it; returns the findings, and the sampler if there is one.

    Args:
        module, event_shape, head, options: the arguments of ``fastgen.Sampler``.
        samples, seed, steps: what is drawn by the program and by the textbook loop.

    Raises:
        ValueError: an argument is not one that the sampler takes.
    """
    try:
        sampler = Sampler(module, event_shape, head, verify=False, **options)
    except NotCausalError as error:
        return ProgramCheck(not_causal=str(error)), None
    except CompileError as error:
        return ProgramCheck(not_compiled=str(error)), None
    causality = sampler.explain().causality
    try:
        self_check(sampler)
    except VerificationError as error:
        return ProgramCheck(causality=causality, mismatch=str(error)), sampler
    drawn, not_drawn = None, ""
    try:
        drawn = compare_with_loop(sampler, samples, seed, steps)
    except ValueError as error:
        not_drawn = str(error)
    return ProgramCheck("", "", causality, "", greatest_error(sampler), drawn, not_drawn), sampler
