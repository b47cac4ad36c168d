"""Samples as files that a person looks at."""

from __future__ import annotations

import csv
from pathlib import Path

from torch import Tensor

from fastgen.data import Description, mulaw
from fastgen.plots.sheet import save_sheet
from fastgen.plots.waveform import save_wav, save_waveforms


def save(values: Tensor, data: Description, stem: Path) -> tuple[Path, ...]:
    """Writes ``[N, *event_shape]``: images as ``stem``.png, audio with ``stem``.wav too, vectors as ``stem``.csv."""
    picture, sound, table = (stem.with_suffix(suffix) for suffix in (".png", ".wav", ".csv"))
    if data.kind == "image":
        save_sheet(picture, values, data.levels)
        return (picture,)
    if data.kind == "vector":
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(data.columns)
            writer.writerows(values.tolist())
        return (table,)
    clips = mulaw.decode(values.reshape(len(values), -1).cpu().numpy(), data.levels)
    save_wav(sound, clips, data.sample_rate)
    save_waveforms(picture, clips[:8], data.sample_rate)
    return picture, sound
