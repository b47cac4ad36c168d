"""The chart of the README: generation over the textbook loop, and flows and ops over their fastest alternative.

``python -m bench.speed_chart`` reads ``bench/results/intel-xeon-processor-2-cores.json`` and writes ``docs/speed.png``.
"""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "intel-xeon-processor-2-cores.json"
CHART = Path(__file__).parents[1] / "docs" / "speed.png"
OURS, OTHERS = "#c44e52", "#8c9aa8"

GENERATION = {  # part of the results -> label
    "wavenet-1": "WaveNet, 30 layers, 1 stream",
    "wavenet-16": "WaveNet, 30 layers, 16 streams",
    "gated_pixelcnn-1": "Gated PixelCNN, 1 image",
    "gated_pixelcnn-16": "Gated PixelCNN, 16 images",
    "pixelcnn_pp-40-2-1": "PixelCNN++, 1 image",
    "pixelcnn_pp-40-2-16": "PixelCNN++, 16 images",
}
FLOWS_AND_OPS = {  # part of the results -> label
    "maf-sampling": "MAF: sampling",
    "nsf-autoregressive-sampling": "autoregressive spline flow: sampling",
    "nsf-coupling-training-step": "coupling spline flow: training step",
    "residual_flow-toy-training-step": "Residual Flow block: training step",
    "ffjord-adaptive": "FFJORD: training step",
    "glow-training-step": "Glow: training step",
    "rq_spline-forward-and-backward": "rq_spline: forward and backward",
    "logistic_mixture-backward": "logistic_mixture: forward and backward",
    "causal_conv1d-4-backward": "causal_conv1d: forward and backward",
    "affine_coupling-exp-backward": "affine_coupling: forward and backward",
}

NAMES_OF_THE_FASTEST = (
    "over the fastest library", "over the best compiled", "over the faster compiled", "over compiled",
)  # fmt: skip


def over_the_first(part: dict) -> tuple[float, float]:
    """Returns the speed-up of fastgen in float32, and of the fastest alternative, over the part's first provider."""
    rows = part["rows"]
    ours = max(row["speedup"] for row in rows if row["provider"] == "fastgen")
    return ours, max(row["speedup"] for row in rows if _is_peer(row["provider"]))


def over_the_fastest(part: dict) -> float:
    """Returns the speed over the fastest alternative, as the part records it, or else as ratio of the two speed-ups."""
    fastest = max((row for row in part["rows"] if _is_peer(row["provider"])), key=lambda row: row["speedup"])
    for bar in part["bars"]:
        if bar["what"].startswith(NAMES_OF_THE_FASTEST) or bar["what"] == f"over {fastest['provider']}":
            return bar["measured"]
    ours, other = over_the_first(part)
    return ours / other


def _is_peer(provider: str) -> bool:
    """Returns whether it is an alternative: not fastgen, nor an accelerated library, nor a copy that marks a floor."""
    return not (provider.startswith("fastgen") or provider.endswith("accelerated") or provider == "clone")


def save_chart(parts: dict[str, dict], path: Path) -> None:
    """Writes the chart of the parts named above as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 4.8), layout="constrained", dpi=100)
    left, right = figure.subplots(1, 2)
    height = 0.38
    for i, name in enumerate(GENERATION):
        ours, other = over_the_first(parts[name])
        for offset, value, colour in ((-height / 2, other, OTHERS), (height / 2, ours, OURS)):
            left.barh(i + offset, value, height, color=colour, zorder=2)
            _label(left, value, i + offset, f"{value:,.0f}x" if value >= 10 else f"{value:.2g}x")
    for colour, label in ((OTHERS, "best alternative"), (OURS, "fastgen, float32")):
        left.barh([0], [0], color=colour, label=label)
    left.set_title("Generation: against the textbook loop", fontsize=11)
    left.set_yticks(range(len(GENERATION)), list(GENERATION.values()))
    left.legend(loc="lower center", bbox_to_anchor=(0.4, -0.2), ncols=2, frameon=False, fontsize=9)

    for i, name in enumerate(FLOWS_AND_OPS):
        ratio = over_the_fastest(parts[name])
        right.barh(i, ratio - 1, 0.6, left=1, color=OURS, zorder=2)
        _label(right, max(ratio, 1), i, f"{ratio:.2g}x")
    right.axvline(1, color="#333333", linewidth=1, zorder=3)
    right.set_title("Flows and ops: against the fastest alternative", fontsize=11)
    right.set_yticks(range(len(FLOWS_AND_OPS)), list(FLOWS_AND_OPS.values()))

    for axes, room in ((left, 4), (right, 1.8)):
        axes.set_xscale("log")
        axes.set_xlim(right=axes.get_xlim()[1] * room)
        axes.xaxis.set_major_formatter("{x:,g}x")
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0, labelsize=9)
        axes.grid(axis="x", color="#e4e7ea", zorder=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    left.set_xlim(left=1)
    right.set_xlim(left=0.7)
    machine = parts["wavenet-1"]["machine"]
    figure.supxlabel(
        f"{machine['processor']}, {machine['cores']} cores, {machine['isa']}, torch {machine['torch'].split('+')[0]}; "
        "each ratio within one run; bench/results has every figure",
        fontsize=9,
        color="#555555",
    )
    figure.savefig(path, metadata={"Software": None})


def _label(axes, value: float, y: float, text: str) -> None:
    axes.annotate(text, (value, y), (4, 0), textcoords="offset points", size=9, va="center")


if __name__ == "__main__":
    save_chart(json.loads(RESULTS.read_text())["parts"], CHART)
