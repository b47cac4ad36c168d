"""Training curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_curves(
    path: Path, rows: list[dict[str, Any]], baseline: float, baseline_name: str, unit: str = "bits/dim"
) -> None:
    """The loss in ``unit`` on train and validation, with the trivial baseline, and the learning rate, as a PNG.

    ``rows`` are those of ``metrics.jsonl``: ``step`` with ``train`` and ``rate``, or with ``validation``. Where the
    model counts them, ``evaluations`` of its fields have an axis too.
    """
    from matplotlib.figure import Figure

    train = [row for row in rows if "train" in row]
    validation = [row for row in rows if "validation" in row]
    figure = Figure(figsize=(7, 4.2), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    axes.plot(
        [r["step"] for r in train], [r["train"] for r in train], color="#8fb3d9", lw=1, label="train, each interval"
    )
    axes.plot(
        [r["step"] for r in validation],
        [r["validation"] for r in validation],
        color="#c44e52",
        marker=".",
        label="validation, averaged weights",
    )
    axes.axhline(baseline, color="#777777", ls="--", lw=1, label=baseline_name)
    axes.set(xlabel="step", ylabel=unit)
    shown = [r["validation"] for r in validation] + [r["train"] for r in train[len(train) // 20 :]] + [baseline]
    margin = 0.05 * (max(shown) - min(shown)) or 0.1
    axes.set_ylim(min(shown) - margin, max(shown) + margin)
    rate = axes.twinx()
    rate.plot([r["step"] for r in train], [r["rate"] for r in train], color="#999999", lw=0.8, alpha=0.6)
    rate.set_ylabel("learning rate", color="#999999")
    rate.set_ylim(bottom=0)
    counted = [row for row in train if "evaluations" in row]
    sides = [axes, rate]
    if counted:
        evaluations = axes.twinx()
        evaluations.spines["right"].set_position(("outward", 64))
        evaluations.plot([r["step"] for r in counted], [r["evaluations"] for r in counted], color="#55a868", lw=0.8)
        evaluations.set_ylabel("evaluations of the fields", color="#55a868")
        evaluations.set_ylim(bottom=0)
        sides.append(evaluations)
    for side in sides:
        side.spines["top"].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)
