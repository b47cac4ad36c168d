"""Writes measurements as JSON, as a table and as a chart."""

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
    """A target and the measured value."""

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
    """The unit that is counted: "sample" or "image"."""
    rows: list[dict] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    facts: dict[str, float | str] = field(default_factory=dict)

    def add(self, providers: list[Provider], compared_with: Provider) -> None:
        """Adds a row for every provider."""
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
        """Returns the part as Markdown."""
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
    """Returns where results are written: FASTGEN_BENCH_RESULTS, or ``results`` in a checkout; None for nowhere."""
    named = os.environ.get("FASTGEN_BENCH_RESULTS")
    if named:
        return Path(named)
    folder = Path(__file__).parents[1] / "results"
    return folder if folder.is_dir() and not QUICK else None


def publish(part: Part, benchmark) -> None:
    """Prints a part, hands it to pytest-benchmark, and writes it into the machine's files.

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
    """Draws a line for every part: the speed of its providers over the first one, on a logarithmic axis."""
    from matplotlib.figure import Figure

    charted = [part for part in parts.values() if part["rows"]]
    if not charted:
        return
    figure = Figure(figsize=(11, 1.2 + 0.24 * len(charted)), layout="constrained", dpi=100)
    axes = figure.subplots()
    for ours, colour, size, label in ((False, "#8c9aa8", 22, "others"), (True, "#c44e52", 30, "fastgen")):
        rows = [(i, row) for i, part in enumerate(charted) for row in part["rows"]]
        dots = [(row["speedup"], i) for i, row in rows if row["provider"].startswith("fastgen") == ours]
        axes.scatter(*zip(*dots, strict=True) if dots else ([], []), s=size, color=colour, label=label, zorder=2)
    for i, part in enumerate(charted):
        best = max(row["speedup"] for row in part["rows"] if row["provider"].startswith("fastgen"))
        text = f"{best:,.0f}x" if best >= 100 else f"{best:.3g}x"
        axes.annotate(text, (best, i), (7, 0), textcoords="offset points", size=7, va="center")
    axes.set_yticks(range(len(charted)), [part["title"] for part in charted], fontsize=7)
    axes.set_ylim(len(charted) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.margins(x=0.1)
    axes.xaxis.set_major_formatter("{x:,g}x")
    axes.set_xlabel("speed over the first provider of the part")
    axes.grid(color="#e4e7ea", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", fontsize=8)
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
