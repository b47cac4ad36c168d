"""Measures the table of ops: kernel, what it fuses, bytes moved, percentage of the floor.

``python -m bench.ops_table`` measures on the CPU and writes the table into ``docs/ops.md``; with ``--device cuda`` it
measures on the GPU, with more samples, and writes ``bench/results/<gpu>.json`` and ``.md``.

The floor is what a copy of as many bytes takes, or the op's multiplications and additions at the measured peak,
whichever is longer. Bytes are those of the arguments and the results; a backward also reads the gradients of the
results and writes those of the arguments.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

import fastgen
from fastgen.ops.registry import OPS

from .suite.machine import commit, describe, keep_freed_memory, thread_counts
from .suite.quick import QUICK, size
from .suite.rounding import moved_by_rounding
from .suite.workloads import WORKLOADS, Workload, on

PAGE = Path(__file__).parents[1] / "docs" / "ops.md"
BEGIN, END = "<!-- written by `python -m bench.ops_table` -->", "<!-- end of what it writes -->"


def seconds(function: Callable[[], object], threads: int) -> float:
    """Returns the median time of a call; on a GPU until it has finished."""
    timer = Timer("function()", globals={"function": function}, num_threads=threads)
    timer.timeit(size(3, 1))
    return timer.timeit(1).median if QUICK else timer.blocked_autorange(min_run_time=0.5).median


def tensors_of(values) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(values) if isinstance(t, Tensor)]


def size_of(values) -> int:
    return sum(t.numel() * t.element_size() for t in tensors_of(values))


def copy_rate(count: int, device: str, threads: int) -> float:
    """Returns the bytes per second, read and written, of a copy that moves ``count`` bytes."""
    source = torch.ones(max(count // 8, 1), device=device)
    target = torch.empty_like(source)
    return 8 * source.numel() / seconds(lambda: target.copy_(source), threads)


def peak(device: str, threads: int) -> float:
    """Returns float32 multiplications and additions per second."""
    if device == "cpu":
        from fastgen import _C

        return _C.fma_peak(threads) * 1e9
    n = 8192
    a = torch.randn(n, n, device=device)
    return 2 * n**3 / seconds(lambda: a @ a, threads)


def check(name: str, arguments: dict, found: tuple[Tensor, ...]) -> None:
    """Exits unless the error is at most twice that of the reference in float32, or what moving the arguments by two
    units in the last place does to the reference in float64."""
    function = getattr(fastgen.ops, name)
    double = {k: _as(v, torch.float64) for k, v in arguments.items()}
    with fastgen.backend("reference"):
        single, exact = tensors_of(function(**arguments)), tensors_of(function(**double))
        moved = tensors_of(function(**{k: moved_by_rounding(v) for k, v in double.items()}))
    for ours, theirs, true, near in zip(found, single, exact, moved, strict=True):
        if true.is_floating_point():
            worst = torch.maximum(2 * (theirs.double() - true).abs().max(), (near - true).abs().max())
            allowed = worst + 1e-6 * true.abs().max().clamp(min=1)
            if not (ours.double() - true).abs().max() <= allowed:
                raise SystemExit(f"{name}: the kernel is wrong by {(ours.double() - true).abs().max():.3g}")


def _as(value, dtype: torch.dtype):
    if isinstance(value, list):
        return [_as(each, dtype) for each in value]
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def measure(name: str, workload: Workload, device: str, threads: int, most: float) -> dict:
    """Returns the row of one op."""
    op, function = OPS[name], getattr(fastgen.ops, name)
    torch.manual_seed(0)

    def made(many: int) -> dict:
        return {k: on(device, v) for k, v in workload.make(many).items()}

    arguments = made(1)
    check(name, arguments, tuple(tensors_of(function(**arguments))))
    many = size(workload.on_gpu, 1) if device == "cuda" else 1
    what, operations = workload.what, many * workload.operations
    if many > 1:
        arguments, what = made(many), f"{what}; {many} times as many samples"
    results = tuple(tensors_of(function(**arguments)))
    chosen = op.chosen(device)
    row = {"op": name, "what": what, "fused": workload.fused, "backend": chosen.backend}

    def record(part: str, call: Callable[[], object], moved: int, operations: float) -> None:
        taken = seconds(call, threads)
        floor = max(moved / copy_rate(moved, device, threads), operations / most)
        row[part] = {"seconds": taken, "bytes": moved, "percent_of_floor": 100 * floor / taken}

    with torch.no_grad():
        moved = size_of(arguments) + size_of(results)
        record("forward", lambda: function(**arguments), moved, operations)
        with fastgen.backend("reference"):
            row["forward"]["reference_seconds"] = seconds(lambda: function(**arguments), threads)
    if op.not_differentiable:
        return row

    def graph() -> tuple[list[Tensor], list[Tensor]]:
        wanted = {k: _wanted(v) for k, v in arguments.items()}
        outputs = [o for o in tensors_of(function(**wanted)) if o.requires_grad]
        return outputs, [t for t in tensors_of(wanted) if t.requires_grad]

    def backward(outputs: list[Tensor], inputs: list[Tensor]) -> Callable[[], object]:
        cotangents = [torch.ones_like(o) for o in outputs]
        return lambda: torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True)

    outputs, inputs = graph()
    moved = size_of(arguments) + size_of(outputs) + size_of(inputs)
    record("backward", backward(outputs, inputs), moved, 2 * operations)
    with fastgen.backend("reference"):
        row["backward"]["reference_seconds"] = seconds(backward(*graph()), threads)
    return row


def _wanted(value):
    if isinstance(value, list):
        return [_wanted(each) for each in value]
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().clone().requires_grad_() if floating else value


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| op | CPU | CUDA | fused | measured on | way | MB moved | ms | GB/s | % of floor | over the reference |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        op = OPS[row["op"]]
        floors = ["composite" if op.composite else "C++" if "cpu" not in op.absent else "reference"]
        floors.append("composite" if op.composite else "Triton" if "triton" not in op.absent else "reference")
        head = [f"`{row['op']}`", *floors, row["fused"], row["what"]]
        for way in ("forward", "backward"):
            if way in row:
                found = row[way]
                cells = [way, f"{found['bytes'] / 1e6:.1f}", f"{found['seconds'] * 1e3:.3g}"]
                cells += [f"{found['bytes'] / found['seconds'] * 1e-9:.1f}", f"{found['percent_of_floor']:.0f}"]
                cells.append(f"{found['reference_seconds'] / found['seconds']:.1f}x")
                lines.append(f"| {' | '.join([*head, *cells])} |")
                head = [""] * len(head)
    return "\n".join(lines) + "\n"


def heading(device: str) -> str:
    if device == "cpu":
        found = describe()
        machine = f"{found['processor']}, {thread_counts()[-1]} threads, {found['isa']}"
        return f"{machine}, torch {found['torch']}, {commit()}"
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {commit()}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ops_table", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, help="a file for the table, in place of the usual ones")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no CUDA device")
    if given.device == "cpu" and fastgen.extension_error:
        raise SystemExit(f"the compiled extension is missing: {fastgen.extension_error}")
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # the peak is that of float32
    most = peak(given.device, threads)
    rows = []
    for name, workload in WORKLOADS.items():
        rows.append(measure(name, workload, given.device, threads, most))
        print(f"{name}: {rows[-1]['forward']['percent_of_floor']:.0f} % of the floor forward", flush=True)
    text = f"Measured on {heading(given.device)}, {datetime.now(UTC):%Y-%m-%d}.\n\n{table(rows)}"
    print(f"\n{text}")
    if given.output is not None:
        given.output.write_text(text)
    elif given.device == "cuda":
        slug = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
        path = Path(__file__).parent / "results" / f"{slug}.json"
        path.write_text(json.dumps({"machine": heading("cuda"), "ops": rows}, indent=1) + "\n")
        path.with_suffix(".md").write_text(text)
    elif not QUICK:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
