"""Counts and sizes as people read them."""

from __future__ import annotations


def counted(number: float) -> str:
    """Returns ``"1.23 M"`` for 1,230,000."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def sized(number: int) -> str:
    """Returns ``"1.5 KiB"`` for 1,536 bytes."""
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} B"
