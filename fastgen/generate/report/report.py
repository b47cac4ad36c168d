"""``fastgen.generate.verify``'s result: what was tried on a network, and what came out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastgen.generate.orders import Order
from fastgen.generate.report.influence import Influence
from fastgen.generate.report.perturbation import Leaks
from fastgen.generate.report.program_check import ProgramCheck

_EXAMPLES = 4


@dataclass(frozen=True)
class Report:
    """``verify``'s report: print it, ask ``passed`` (or ``bool``), read its parts, or ``plot`` it."""

    title: str
    order: Order
    repeatable: bool
    """Whether the same input gives the same output, bit for bit; where it does not, nothing else is tried."""
    mixes_samples: bool
    """Whether an output depends on other samples of the batch; if so, leaks are not looked for."""
    leaks: Leaks | None
    """Found by changing elements, without the compiler."""
    influence: Influence | None
    """What changes one output: one that leaks, else the one that ``explain`` shows."""
    program: ProgramCheck | None
    """What the compiler says, and the program beside the module and the textbook loop; None: not compiled, since the
    output is not repeatable."""

    @property
    def causal(self) -> bool:
        """Whether no output was found, by changes or by ready times, to see what is not drawn yet."""
        tried = self.leaks is not None and not self.leaks.count
        return tried and not (self.program and self.program.not_causal)

    @property
    def passed(self) -> bool:
        """Whether all was tried and found right: causal, compiled, and the program and its samples the module's.

        Blind spots are no fault.
        """
        return self.causal and self.program is not None and self.program.passed

    def __bool__(self) -> bool:
        return self.passed

    @property
    def verdict(self) -> str:
        """The result in a few words."""
        if self.passed:
            return "passed"
        if not self.repeatable:
            return "FAILED: the output changes from call to call"
        if self.mixes_samples:
            return "FAILED: the samples of a batch mix"
        if not self.causal or self.program is None:
            return "FAILED: not causal"
        if not self.program.compiled:
            return "causal, but NOT COMPILED"
        return "FAILED: no samples" if self.program.not_drawn else "FAILED: the program is not the module"

    def __str__(self) -> str:
        rows = [("repeatable", "yes" if self.repeatable else "NO: the same input gives different outputs")]
        if self.program is not None:
            rows += [
                ("batch", "an output DEPENDS on other samples" if self.mixes_samples else "the samples do not mix"),
                ("leaks", _leaks_text(self.leaks)),
                *(("", f"{leak}") for leak in (self.leaks.examples if self.leaks else ())),
                ("blind spots", _blind_text(self.influence)),
                ("ready times", self.program.not_causal or self.program.causality or "unknown"),
                ("program", str(self.program)),
                ("samples", str(self.program.samples or self.program.not_drawn or "not drawn")),
            ]
        return "\n".join([f"{self.title}: {self.verdict}", *(f"  {name:<12} {text}" for name, text in rows)])

    def plot(self, path: str | Path) -> None:
        """Draws the elements that change one output, and the outputs that leak, as a PNG.

        Raises:
            ValueError: nothing was tried, since the network's output is not repeatable or mixes samples.
            ImportError: matplotlib is missing.
        """
        from fastgen.generate.report.picture import save_picture

        if self.leaks is None or self.influence is None:
            raise ValueError(f"a picture needs a leak test, which was left out: {self.verdict}")
        save_picture(Path(path), f"{self.title}: {self.verdict}", self.order, self.leaks, self.influence)


def _leaks_text(leaks: Leaks | None) -> str:
    if leaks is None:
        return "not tried"
    tried = "all" if len(leaks.tested) == leaks.steps else str(len(leaks.tested))
    masked = ""
    if leaks.reached:
        masked = f"; what is not drawn yet is multiplied by zero for {leaks.reached} of them: a NaN there would spread"
    if not leaks.count:
        return f"none: no output changes with an element that is not drawn yet ({tried} of {leaks.steps} steps){masked}"
    return (
        f"FOUND: {leaks.count} of {leaks.sizes.numel()} outputs change with elements that are not drawn yet "
        f"({tried} of {leaks.steps} steps tried){masked}"
    )


def _blind_text(influence: Influence | None) -> str:
    if influence is None:
        return "not tried"
    of = f"of the output that scores {influence.output}"
    names = influence.blind_names()
    if names:
        examples = ", ".join(names[:_EXAMPLES] + ["..."] * (len(names) > _EXAMPLES))
        return f"{int(influence.blind.sum())} earlier elements within the reach {of} do not change it: {examples}"
    seen, earlier = int((influence.seen & influence.earlier).sum()), int(influence.earlier.sum())
    return f"none {of}: it sees {seen} of the {earlier} earlier elements that were changed"
