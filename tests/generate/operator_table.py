"""The table of operators in ``docs/generate.md``, from the rules.

``python -m tests.generate.operator_table`` in the repository's root writes it.
"""

from __future__ import annotations

import inspect
import sys
from collections import defaultdict
from pathlib import Path

from fastgen.generate.frontend.integers import CONVERSIONS
from fastgen.generate.frontend.rules import RULES
from fastgen.generate.frontend.rules.attention import SCORE_RULES

PAGE = Path(__file__).parents[2] / "docs" / "generate.md"
BEGIN, END = "<!-- written by `python -m tests.generate.operator_table` -->", "<!-- end of what it writes -->"
PACKAGE = "fastgen.generate.frontend.rules."


def names(operators) -> str:
    """The names of ATen operators without their overloads, in alphabetical order."""
    return ", ".join(f"`{name}`" for name in sorted({str(operator).split(".")[1] for operator in operators}))


def table() -> str:
    """A row for every file of rules, one for conversions between dtypes, one for the operators that are refused."""
    files = defaultdict(list)
    for operator, rule in RULES.items():
        module = inspect.unwrap(rule).__module__
        if module.startswith(PACKAGE):  # others are registered by users, and by tests
            files[module].append(operator)
    rows = ["| rules | operators |", "| --- | --- |"]
    for module in sorted(files):
        subject = (sys.modules[module].__doc__ or "").splitlines()[0].rstrip(".")
        rows.append(f"| {subject} (`{module.replace('.', '/')}.py`) | {names(files[module])} |")
    rows.append(f"| Conversions between dtypes | {names(CONVERSIONS)} |")
    rows.append(f"| On scores of attention | {names(SCORE_RULES)} |")
    return "\n".join(rows)


def page() -> str:
    """The page with its table as the rules have it now."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page())
