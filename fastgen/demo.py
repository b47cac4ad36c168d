"""``make demo``: a small PixelCNN++ on real digits, generated from by the compiled sampler and by the textbook loop."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastgen.cli import INTERRUPTED, report_missing

OUTPUT = Path("demo")
STEPS = 500
DIGITS = 64


def main() -> int:
    """Returns the exit status: 1 if the two samplers drew different digits, or the directory cannot be written."""
    try:
        return _demo()
    except ModuleNotFoundError as error:
        return report_missing("the demo", error)
    except (ValueError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


def _demo() -> int:
    from fastgen.data import load
    from fastgen.plots.sheet import save_panels
    from fastgen.training.comparison import compare
    from fastgen.training.config import OptimizerConfig, TrainConfig
    from fastgen.training.loop import TrainingInterrupted, train
    from fastgen.training.sampling import load_run

    config = TrainConfig(
        OUTPUT / "run",
        steps=STEPS,
        samples=0,
        threads=1,  # the network is so small that more would wait for one another
        optimizer=OptimizerConfig(rate=2e-3, ema=0.99),
        evaluate_interval=STEPS // 4,
        overwrite=(OUTPUT / "run").is_dir(),
    )
    print("1. Train a small PixelCNN++ on real digits of 8 x 8 pixels and 17 grey levels")
    try:
        outcome = train(config)
    except TrainingInterrupted:
        print("stopped; the demo starts over when it is run again", file=sys.stderr)
        return INTERRUPTED

    print(f"\n2. Generate {DIGITS} digits with one seed in two ways")
    model = load_run(config.output).model
    sampler, seconds = _timed(model.sampler)
    print(f"   sampler compiled in {seconds:.1f} s")
    digits, fast = _timed(lambda: sampler.sample(DIGITS, seed=0))
    same_digits, slow = _timed(lambda: sampler.sample_naive(DIGITS, seed=0))
    comparison = compare(model, digits, same_digits, seed=0)
    print(f"   {comparison}")
    _, fast_one = _timed(lambda: sampler.sample(1, seed=0))
    _, slow_one = _timed(lambda: sampler.sample_naive(1, seed=0))
    for count, quick, textbook in ((DIGITS, fast, slow), (1, fast_one, slow_one)):
        ratio = f"{textbook / quick:.0f} times as fast"
        print(f"   {count:2} at once: compiled {1e3 * quick:.1f} ms, textbook loop {1e3 * textbook:.0f} ms: {ratio}")

    data = load(config.data)
    panels = {
        f"compiled sampler: {1e3 * fast:.0f} ms": digits,
        f"textbook loop: {1e3 * slow:.0f} ms": same_digits,
        "real digits, test split": data.splits["test"].values[:DIGITS],
    }
    test, trivial = outcome.test.bits_per_dim, outcome.baseline.bits_per_dim
    title = f"PixelCNN++ on 8 x 8 digits, {test:.3f} bits/dim on the test split (independent pixels: {trivial:.3f})"
    save_panels(OUTPUT / "digits.png", panels, data.levels, title)
    print(f"\n3. Look at {OUTPUT / 'digits.png'} and {config.output / 'curves.png'}")
    if comparison.unexplained:
        print("the two ways drew different digits, and rounding does not explain it", file=sys.stderr)
        return 1
    return 0


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
