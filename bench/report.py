"""What was measured, as JSON, as a table and as a picture."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .interleave import Provider
from .machine import DEFAULT_ALLOCATOR, describe, slug
from .quick import QUICK


@dataclass
class Bar:
    """What was asked for, and what came out."""

    what: str
    needed: float
    measured: float
    unit: str = "x"
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.measured <= self.needed if self.at_most else self.measured >= self.needed

    def __str__(self) -> str:
        asked = f"{'at most' if self.at_most else 'at least'} {self.needed:g}{_spaced(self.unit)}"
        return f"{self.what}: {self.measured:,.4g}{_spaced(self.unit)} ({asked}: {'met' if self.met else 'NOT met'})"


@dataclass
class Part:
    """One part of the benchmark: one model at one batch size, all providers."""

    name: str
    title: str
    unit: str
    """What is made: "sample" or "image"."""
    rows: list[dict] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    facts: dict[str, float | str] = field(default_factory=dict)

    def add(self, providers: list[Provider], compared_with: Provider) -> None:
        """A row for every provider."""
        for p in providers:
            self.rows.append(
                {
                    "provider": p.name,
                    "threads": p.machine_threads or p.threads,
                    "seconds": p.seconds,
                    "per_second": 1 / p.seconds,
                    "speedup": p.speedup_over(compared_with),
                    "percent_of_floor": p.percent_of_floor,
                    "rounds": len(p.times),
                    "note": p.note,
                }
            )

    def table(self) -> str:
        """Markdown."""
        lines = [f"### {self.title}", ""]
        if self.rows:
            lines += [f"| provider | threads | {self.unit}s/s | speed-up | % of floor | |", "|---|---|---|---|---|---|"]
        for row in self.rows:
            percent = "" if row["percent_of_floor"] is None else f"{row['percent_of_floor']:.0f}"
            speed, ratio = _number(row["per_second"]), f"{row['speedup']:,.3g}"
            cells = (row["provider"], row["threads"], speed, ratio, percent, row["note"])
            lines.append(f"| {' | '.join(map(str, cells))} |")
        lines += [""] if self.rows else []
        lines += [f"- {name}: {_number(value)}" for name, value in self.facts.items()]
        lines += [f"- {bar}" for bar in self.bars]
        return "\n".join(lines) + "\n"


def results_folder() -> Path | None:
    """Where results are written: FASTGEN_BENCH_RESULTS, or ``results`` here in a checkout; None is nowhere."""
    named = os.environ.get("FASTGEN_BENCH_RESULTS")
    if named:
        return Path(named)
    folder = Path(__file__).parent / "results"
    return folder if folder.is_dir() and not QUICK else None


def publish(part: Part, benchmark) -> None:
    """Prints a part, hands it to pytest-benchmark, and writes the machine's files again with it in them.

    With the system's allocator only the ratios are written, beside those of the part as it was measured before.
    """
    benchmark.extra_info.update({"rows": part.rows, "facts": part.facts, "bars": [str(bar) for bar in part.bars]})
    print(f"\n{part.table()}", flush=True)
    folder = results_folder()
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slug()}.json"
    results = json.loads(path.read_text()) if path.exists() else {"parts": {}}
    if DEFAULT_ALLOCATOR:
        beside = results["parts"].get(part.name)
        if beside is None:
            return
        ratios = {f"{bar.what}, with the default allocator": bar.measured for bar in part.bars if bar.unit == "x"}
        beside["facts"] |= ratios
        kept = {name: beside[name] for name in ("name", "title", "unit", "rows", "facts")}
        beside["table"] = Part(**kept, bars=[Bar(**bar) for bar in beside["bars"]]).table()
    else:
        results["parts"][part.name] = asdict(part) | {"table": part.table(), "machine": describe()}
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(_page(results["parts"]))
    save_chart(results["parts"], path.with_suffix(".png"))


def save_chart(parts: dict[str, dict], path: Path) -> None:
    """The speed-up of every provider over the first baseline, part by part, on a logarithmic axis."""
    from matplotlib.figure import Figure

    charted = [part for part in parts.values() if part["rows"]]
    if not charted:
        return
    figure = Figure(
        figsize=(10, 0.9 + sum(0.28 * len(p["rows"]) + 0.75 for p in charted)), layout="constrained", dpi=120
    )
    every = figure.subplots(
        len(charted), 1, squeeze=False, gridspec_kw={"height_ratios": [len(p["rows"]) + 1 for p in charted]}
    )[:, 0]
    for axes, part in zip(every, charted, strict=True):
        names = [f"{row['provider']}, {row['threads']} thr." for row in part["rows"]]
        speeds = [row["per_second"] for row in part["rows"]]
        colours = ["#c44e52" if row["provider"].startswith("fastgen") else "#8c9aa8" for row in part["rows"]]
        bars = axes.barh(names, speeds, color=colours)
        labels = [f" {row['per_second']:,.3g}  ({row['speedup']:,.3g}x)" for row in part["rows"]]
        axes.bar_label(bars, labels, size=7)
        axes.set_xscale("log")
        axes.set_xlim(min(speeds) / 2, max(speeds) * 6)
        axes.invert_yaxis()
        axes.set_title(f"{part['title']}: {part['unit']}s per second", fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _page(parts: dict[str, dict]) -> str:
    machines: dict[str, list[str]] = {}
    for part in parts.values():
        head = "; ".join(f"{name} {value}" for name, value in part["machine"].items() if name != "date")
        machines.setdefault(head, []).append(part["table"])
    return "\n".join(f"## {head}\n\n" + "\n".join(tables) for head, tables in machines.items())


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.4g}"


def _spaced(unit: str) -> str:
    return unit if unit in ("x", "%") else f" {unit}"
