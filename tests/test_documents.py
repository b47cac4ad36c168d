"""The documents hold: their examples run, the files that they name exist, their figures are those of bench/results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from bench.speed_chart import RESULTS, over_the_fastest, over_the_first, save_chart

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/results/README.md")
] + sorted((ROOT / "docs").glob("*.md"))
PEERS = ("nflows", "zuko", "normflows", "FrEIA")
NAMED_FILE = re.compile(r"`((?:\.?[\w.-]+/)+[\w.-]*|[A-Z]\w+\.\w+|Makefile)`")
"""A path in backquotes: with a slash, or a file of the root."""
MADE = ("demo/", "runs/", "build/", "folder/", "mylib/")
"""Folders that commands make, or that stand for a reader's own."""


def blocks(document: Path) -> list[str]:
    """The Python examples of a document, in order."""
    return re.findall(r"^```python\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


def names(documents: list[Path]) -> list[str]:
    return [str(document.relative_to(ROOT)) for document in documents]


WITH_EXAMPLES = [document for document in DOCUMENTS if blocks(document)]


@pytest.mark.needs_extension
@pytest.mark.parametrize("document", WITH_EXAMPLES, ids=names(WITH_EXAMPLES))
def test_the_examples_run_one_after_the_other(document, tmp_path, monkeypatch, capsys):
    examples = blocks(document)
    for peer in PEERS:
        if any(f'accelerate("{peer}")' in example or f'accelerated("{peer}")' in example for example in examples):
            pytest.importorskip(peer, reason=f"{peer}, which an example accelerates, is not installed")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict = {"__name__": "__main__"}
    for example in examples:
        exec(compile(example, str(document), "exec"), namespace)


@pytest.mark.needs_extension
def test_the_networks_of_the_readme_generate_what_the_textbook_loop_does():
    images, tokens = blocks(ROOT / "README.md")
    small = {"images": images.replace("28, 28", "6, 6"), "tokens": tokens.replace("(2000,)", "(40,)")}
    for result, example in small.items():  # each in a namespace of its own
        torch.manual_seed(0)
        namespace: dict = {"__name__": "__main__"}
        exec(example.split(f"{result} = ")[0], namespace)
        sampler = namespace["sampler"]
        assert torch.equal(sampler.sample(2, seed=0), sampler.sample_naive(2, seed=0))


@pytest.mark.parametrize("document", DOCUMENTS, ids=names(DOCUMENTS))
def test_the_files_that_it_names_exist(document):
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    links = {link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link}
    missing = [link for link in links if link and not (document.parent / link).exists()]
    named = {name for name in NAMED_FILE.findall(text) if not name.startswith(MADE)}
    missing += [name for name in named if not ((ROOT / name).exists() or (document.parent / name).exists())]
    assert sorted(missing) == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_the_figures_of_the_readme_are_measured():
    parts = json.loads(RESULTS.read_text())["parts"]
    readme = (ROOT / "README.md").read_text()

    generated = {name: part for name, part in parts.items() if re.match("wavenet-|gated_pixelcnn-|pixelcnn_pp-", name)}
    textbook = [max(r["speedup"] for r in p["rows"] if r["provider"] == "fastgen") for p in generated.values()]
    assert f"{min(textbook):,.0f} to {max(textbook):,.0f} times the textbook loop" in readme
    cached = [over_the_first(part) for name, part in generated.items() if not name.startswith("pixelcnn_pp")]
    ratios = [ours / other for ours, other in cached]
    assert f"{min(ratios):.2g} to {max(ratios):.2g} times the best cache written by hand" in readme

    def accelerated(pattern: str) -> list[float]:
        bars = [bar for name, part in parts.items() if re.match(pattern, name) for bar in part["bars"]]
        return [bar["measured"] for bar in bars if bar["what"].endswith("accelerated over itself")]

    fast, even = accelerated("nsf-|maf-sampling"), accelerated("glow-|maf-(log_prob|training)")
    assert f"{min(fast):.2g} to {max(fast):.2g} times on spline flows and MAF sampling" in readme
    assert f"{min(even):.2f} to {max(even):.2f} times where" in readme

    spline = [parts[f"rq_spline-{way}"]["bars"] for way in ("forward", "inverse", "forward-and-backward")]
    eager = [b["measured"] for bars in spline for b in bars if b["what"].startswith("over the fastest eager")]
    compiled = [b["measured"] for bars in spline for b in bars if b["what"].startswith("over the best compiled")]
    assert f"{min(eager):.0f} to {max(eager):.0f} times eager PyTorch" in readme
    assert f"{min(compiled):.0f} to {max(compiled):.0f} times `torch.compile`" in readme


def test_the_chart_is_drawn_from_the_results(tmp_path):
    parts = json.loads(RESULTS.read_text())["parts"]
    assert over_the_fastest(parts["glow-training-step"]) < 1  # the chart does not leave out what is slower
    save_chart(parts, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
