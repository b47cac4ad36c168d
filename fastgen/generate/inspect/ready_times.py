"""The picture of the ready times behind one output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastgen.generate.compile.pipeline import Analysis
from fastgen.generate.inspect.receptive_field import ReceptiveField
from fastgen.generate.ir.graph import ChannelRun, Node
from fastgen.generate.ir.instructions import PIXEL, PROLOGUE, ROW

_KINDS = {PROLOGUE: "before the first step", ROW: "a whole row at a time", PIXEL: "step by step"}
_COLOURS = {PROLOGUE: "#888888", ROW: "#2a788e", PIXEL: "#c44e52"}
_MOST_LAYERS = 48


@dataclass(frozen=True)
class Layer:
    """The cells of one layer that the output depends on: when they are ready, and how they are computed."""

    name: str
    kind: int
    steps: np.ndarray


def save_ready_times(path: Path, analysis: Analysis, field: ReceptiveField) -> None:
    """Draws ``field``'s event and layers; see ``Explanation.save_ready_times``."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("save_ready_times needs matplotlib: pip install fastgen-kernels[zoo]") from error
    step = int(analysis.order.steps[field.channel].reshape(field.seen.shape[1:])[field.position])
    shown = layers(analysis, field)
    height = max(3.6, 1.6 + 0.17 * len(shown))
    image = len(field.position) == 2
    figure = Figure(figsize=(13 if image else 9, height), layout="constrained", dpi=120)
    if image:
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.5])
        _draw_image(figure, left, analysis, field, step)
    else:
        right = figure.subplots()
    _draw_layers(right, analysis, field, shown, step)
    at = str(field.position[0]) if len(field.position) == 1 else str(field.position)
    figure.suptitle(
        f"What the output at {at} waits for (drawn at step {step}, order {analysis.order.name!r})", fontsize=11
    )
    figure.savefig(path)


def layers(analysis: Analysis, field: ReceptiveField) -> list[Layer]:
    """Returns the layers with weights before the output, from the event on; those of one name and kind together."""
    found: dict[tuple[str, int], list[np.ndarray]] = {}
    for node, needed in field.needed.items():
        for number, (run, rows) in enumerate(zip(node.runs, needed, strict=True)):
            if rows.any() and _has_weights(run):
                kind = _kind(analysis, node, number)
                found.setdefault((node.name.split(" (")[0], kind), []).append(run.ready[rows])
    merged = [Layer(name, kind, np.unique(np.concatenate(steps))) for (name, kind), steps in found.items()]
    if len(merged) > _MOST_LAYERS:
        merged = [merged[i] for i in np.unique(np.linspace(0, len(merged) - 1, _MOST_LAYERS).astype(int))]
    return merged


def _has_weights(run: ChannelRun) -> bool:
    return bool(run.terms) or any(p.node.values is not None and p.node.values.sources for p in run.pieces())


def _kind(analysis: Analysis, node: Node, number: int) -> int:
    kinds = {domain.when for domain in analysis.placed[node].domains[number]}
    return max(kinds, default=PIXEL)


def _draw_image(figure, axes, analysis: Analysis, field: ReceptiveField, step: int) -> None:
    from matplotlib.patches import Patch, Rectangle

    rows, columns = field.seen.shape[1:]
    steps = analysis.order.steps.max(0).reshape(rows, columns)
    seen, blind, earlier = (mask.any(0) for mask in (field.seen, field.blind & ~field.seen.any(0), field.earlier))
    background = np.ones((rows, columns, 3))
    background[earlier] = 0.88
    background[blind] = (0.96, 0.72, 0.55)
    axes.imshow(background)
    picture = axes.imshow(np.where(seen, steps + 1.0, np.nan), cmap="viridis")
    row, column = field.position
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#c44e52", lw=2))
    axes.set(title="the event: step at whose start a pixel is ready", xlabel="column", ylabel="row")
    axes.title.set_fontsize(10)
    figure.colorbar(
        picture, ax=axes, orientation="vertical", fraction=0.05, shrink=0.8, anchor=(0, 1), label="ready at step"
    )
    patches = [
        Patch(fill=False, edgecolor="#c44e52", label=f"the output, step {step}"),
        Patch(color="0.88", label="earlier, out of reach"),
        Patch(color="white", ec="0.6", label="later"),
    ]
    if blind.any():
        patches.insert(1, Patch(color=(0.96, 0.72, 0.55), label="earlier, within reach, not seen"))
    figure.legend(handles=patches, fontsize=7, loc="outside lower left", ncol=len(patches), frameon=False)
    axes.set_anchor("N")


def _draw_layers(axes, analysis: Analysis, field: ReceptiveField, shown: list[Layer], step: int) -> None:
    from matplotlib.lines import Line2D

    drawn = np.unique(analysis.order.steps.reshape(field.seen.shape)[field.seen])
    axes.scatter(drawn + 1, np.zeros(len(drawn)), s=9, color="#440154")
    for number, layer in enumerate(shown, 1):
        colour = _COLOURS[layer.kind]
        axes.plot([layer.steps.min(), layer.steps.max()], [number, number], color=colour, lw=0.8, alpha=0.4)
        axes.scatter(layer.steps, np.full(len(layer.steps), number), s=9, color=colour)
    axes.axvline(step, color="0.4", lw=1, ls="--")
    names = ["event", *(layer.name for layer in shown)]
    axes.set_yticks(range(len(names)), names, fontsize=7 if len(names) < 30 else 6)
    axes.set_ylim(-0.8, len(names) - 0.2)
    axes.set(title="the layers: steps at which the cells it needs are ready", xlabel="step")
    axes.title.set_fontsize(10)
    used = sorted({layer.kind for layer in shown})
    handles = [Line2D([], [], color=_COLOURS[k], marker="o", ms=3, lw=0.8, label=f"computed {_KINDS[k]}") for k in used]
    handles.append(Line2D([], [], color="0.4", ls="--", lw=1, label="the draw"))
    axes.legend(handles=handles, fontsize=7, loc="upper left", frameon=True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="x", alpha=0.2)
