"""The picture of a report: what one output sees, and which outputs see what is not drawn yet."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastgen.generate.orders import Order
from fastgen.generate.report.influence import Influence
from fastgen.generate.report.perturbation import Leaks

_OUTPUT, _SEEN, _BLIND, _LEAK = "#111111", "#2a788e", "#f6b88c", "#c44e52"
_EARLIER, _UNTRIED, _LATER, _FREE = "#d9d9d9", "#efefef", "#ffffff", "#cfe3d4"
_MOST_POINTS = 400
"""Positions of a sequence that are shown, the nearest to the output."""


def save_picture(path: Path, title: str, order: Order, leaks: Leaks, influence: Influence) -> None:
    """Draws the elements that change one output, and the outputs that leak; see ``Report.plot``."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install fastgen-kernels[zoo]") from error
    image = len(order.grid) > 1
    figure = Figure(figsize=(11, 5.4) if image else (11, 5.6), layout="constrained", dpi=120)
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(1, 2) if image else figure.subplots(2, 1)
    (_image_of_output if image else _sequence_of_output)(axes[0], order, influence)
    (_image_of_leaks if image else _sequence_of_leaks)(axes[1], order, leaks)
    figure.savefig(path)


def _kinds(order: Order, influence: Influence) -> dict[str, np.ndarray]:
    """Returns booleans ``[P]`` by what is said of the positions: of any channel, the first that holds."""
    steps, own = order.steps, influence.output.step
    seen, blind, tested = influence.seen.numpy(), influence.blind.numpy(), influence.tested.numpy()
    scored = np.zeros_like(seen)
    scored[influence.output.channel, np.ravel_multi_index(influence.output.position, order.grid)] = True
    masks = {
        "sees, although it is not drawn yet": seen & (steps >= own),
        "the output": scored,
        "sees": seen & (steps < own),
        "earlier, within reach, not seen": blind,
        "earlier, not seen": tested & (steps < own),
        "earlier, not tried": steps < own,
        "later": steps >= own,
    }
    left, kinds = np.ones(order.positions, bool), {}
    for name, mask in masks.items():
        kinds[name] = mask.any(0) & left
        left &= ~kinds[name]
    return {name: mask for name, mask in kinds.items() if mask.any()}


_COLOURS = {
    "sees, although it is not drawn yet": _LEAK,
    "the output": _OUTPUT,
    "sees": _SEEN,
    "earlier, within reach, not seen": _BLIND,
    "earlier, not seen": _EARLIER,
    "earlier, not tried": _UNTRIED,
    "later": _LATER,
}


def _image_of_output(axes, order: Order, influence: Influence) -> None:
    from matplotlib.colors import to_rgb

    picture = np.ones((order.positions, 3))
    kinds = _kinds(order, influence)
    for name, mask in kinds.items():
        picture[mask] = to_rgb(_COLOURS[name])
    axes.imshow(_frames_beside(picture, order))
    *frame, row, column = influence.output.position
    column += frame[0] * order.grid[-1] if frame else 0
    axes.plot([column], [row], marker="s", mfc="none", mec=_OUTPUT, mew=2, ms=max(3, 180 / max(order.grid)))
    _finish_image(axes, f"what the output that scores {influence.output} sees", kinds)


def _image_of_leaks(axes, order: Order, leaks: Leaks) -> None:
    from matplotlib.colors import to_rgb

    found = (leaks.sizes > 0).any(0).numpy()
    picture = np.where(found[:, None], to_rgb(_LEAK), to_rgb(_FREE))
    axes.imshow(_frames_beside(picture, order))
    kinds = {"sees elements that are not drawn yet": found, "sees nothing that is not drawn yet": ~found}
    _finish_image(axes, _leak_title(leaks), {name: mask for name, mask in kinds.items() if mask.any()})


def _frames_beside(picture: np.ndarray, order: Order) -> np.ndarray:
    """Returns colours ``[P, 3]`` as an image, the frames of a video side by side."""
    *_, height, width = order.grid
    return picture.reshape(-1, height, width, 3).swapaxes(0, 1).reshape(height, -1, 3)


def _finish_image(axes, title: str, kinds: dict[str, np.ndarray]) -> None:
    axes.set(xlabel="column", ylabel="row")
    axes.set_title(title, fontsize=10)
    _legend(axes, kinds)


def _legend(axes, kinds: dict[str, np.ndarray]) -> None:
    from matplotlib.patches import Patch

    colours = _COLOURS | {"sees elements that are not drawn yet": _LEAK, "sees nothing that is not drawn yet": _FREE}
    patches = [Patch(facecolor=colours[name], edgecolor="0.6", label=name) for name in kinds]
    axes.legend(handles=patches, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=3, frameon=False)


def _leak_title(leaks: Leaks) -> str:
    tried = "all" if len(leaks.tested) == leaks.steps else f"{len(leaks.tested)} of {leaks.steps}"
    return f"outputs that leak: {leaks.count} of {leaks.sizes.numel()} ({tried} steps tried)"


def _sequence_of_output(axes, order: Order, influence: Influence) -> None:
    (at,) = influence.output.position
    shown = np.argsort(abs(np.arange(order.positions) - at), kind="stable")[:_MOST_POINTS]
    sizes = influence.sizes.amax(0).numpy()
    finite = sizes[np.isfinite(sizes) & (sizes > 0)]
    low = finite.min() / 10 if len(finite) else 1e-3
    kinds = {name: np.flatnonzero(mask[shown]) for name, mask in _kinds(order, influence).items()}
    for name, places in kinds.items():
        positions = shown[places]
        heights = np.where(np.isfinite(sizes[positions]) & (sizes[positions] > 0), sizes[positions], low)
        seen = sizes[positions] > 0
        axes.vlines(positions[seen], low, heights[seen], color=_COLOURS[name], lw=1.5)
        axes.scatter(positions, heights, s=16, color=_COLOURS[name], edgecolor="0.5", linewidth=0.4, zorder=3)
    axes.axvline(at, color=_OUTPUT, lw=0.8, ls="--")
    axes.set(yscale="log", ylabel="change of the output", xlabel="position")
    axes.set_title(f"what the output that scores {influence.output} sees", fontsize=10)
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=_COLOURS[name], edgecolor="0.6", label=name) for name in kinds]
    axes.legend(handles=patches, fontsize=7, loc="upper left", frameon=True)
    _tidy(axes)


def _sequence_of_leaks(axes, order: Order, leaks: Leaks) -> None:
    sizes = leaks.sizes.amax(0).numpy()
    found = np.flatnonzero(sizes > 0)
    axes.vlines(found, 0, np.minimum(sizes[found], np.finfo(np.float32).max), color=_LEAK, lw=1)
    axes.set_xlim(-1, order.positions)
    axes.set(ylabel="change of the output", xlabel="position")
    axes.set_title(_leak_title(leaks), fontsize=10)
    _tidy(axes)


def _tidy(axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="x", alpha=0.2)
