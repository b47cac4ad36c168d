"""``docs/pytorch.md``: every layer of ``fastgen.nn`` against what PyTorch does with modules.

``python -m tests.nn.pytorch_matrix`` in the repository's root writes it.
"""

from __future__ import annotations

from pathlib import Path

from tests.nn.layer_cases import CASES
from tests.nn.process_columns import PROCESS_COLUMNS
from tests.nn.pytorch_columns import COLUMNS
from tests.nn.pytorch_refusals import REFUSALS

PAGE = Path(__file__).parents[2] / "docs" / "pytorch.md"

_HEAD = """# Layers in PyTorch

Every layer of `fastgen.nn` is a plain `nn.Module`. This page says which features of PyTorch each of them is tested
with. *yes* means that outputs and gradients are those of the plain call; a number leads to the reason for a refusal.
`python -m tests.nn.pytorch_matrix` writes the page from the tables that `tests/nn/test_pytorch_matrix.py` tests (all of
the slow columns with `pytest -m slow`).

## What was tried

"""


def page() -> str:
    """The text of the page, from the tables alone."""
    columns = [*COLUMNS, *PROCESS_COLUMNS]
    says = {name: column.says for name, column in (COLUMNS | PROCESS_COLUMNS).items()}
    reasons = list(dict.fromkeys(refusal.reason for refusal in REFUSALS.values()))

    def cell(layer: str, column: str) -> str:
        refusal = REFUSALS.get((layer, column))
        return f"no ({1 + reasons.index(refusal.reason)})" if refusal else "yes"

    lines = [f"- **{name}**: {text}" for name, text in says.items()]
    lines += ["", "## The layers", "", f"| layer | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| {layer} | {' | '.join(cell(layer, column) for column in columns)} |" for layer in CASES]
    lines += ["", "## Refusals", "", *(f"{i}. {text[0].upper()}{text[1:]}." for i, text in enumerate(reasons, 1)), ""]
    return _HEAD + "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
