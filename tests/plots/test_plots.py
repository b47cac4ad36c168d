from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from fastgen.plots.curves import save_curves
from fastgen.plots.sheet import arrange, save_sheet, to_pixels
from fastgen.plots.waveform import save_wav, save_waveforms


@pytest.mark.parametrize("channels", [1, 3])
def test_levels_reach_black_and_full(channels):
    pixels = to_pixels(torch.tensor([0, 8, 16]).reshape(3, 1, 1, 1).expand(3, channels, 2, 2), 17)
    assert pixels.shape == (3, 2, 2, 3)
    assert [int(v) for v in pixels[:, 0, 0, 0]] == [0, 128, 255]


@pytest.mark.parametrize("columns", [None, 1, 3])
def test_every_pixel_is_on_the_sheet(columns):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 4, 3, 3), dtype=np.uint8)
    columns_used = columns or 3
    sheet = arrange(pixels, columns, scale=2, gap=1)
    for i, image in enumerate(pixels):
        top, left = i // columns_used * 9 + 1, i % columns_used * 7 + 1
        assert np.array_equal(sheet[top : top + 8 : 2, left : left + 6 : 2], image)
        assert np.array_equal(sheet[top + 1 : top + 8 : 2, left + 1 : left + 6 : 2], image)


def test_sheet_is_a_png(tmp_path):
    save_sheet(tmp_path / "s.png", torch.zeros(4, 1, 8, 8, dtype=torch.int64), 17)
    with Image.open(tmp_path / "s.png") as image:
        assert image.size == (2 * 50 + 2, 2 * 50 + 2)


def test_wav_holds_the_clips_with_a_pause_between(tmp_path):
    clips = np.linspace(-0.9, 0.9, 20, dtype=np.float32).reshape(2, 10)
    save_wav(tmp_path / "s.wav", clips, 100, pause=0.05)
    read, rate = soundfile.read(tmp_path / "s.wav")
    assert rate == 100
    assert np.abs(read - np.concatenate([clips[0], np.zeros(5), clips[1]])).max() <= 2**-15


@pytest.mark.parametrize("length", [1, 7, 200, 5000])
def test_the_spectrogram_has_columns_for_every_length_of_clip(tmp_path, length, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    monkeypatch.setattr(Axes, "pcolormesh", lambda self, time, frequency, power, **_: drawn.append(power.shape))
    save_waveforms(tmp_path / "w.png", np.zeros((1, length)), 8000)
    assert drawn[0][1] >= min(length, 16)


def test_pictures_are_written(tmp_path):
    save_waveforms(tmp_path / "w.png", np.random.default_rng(0).normal(0, 0.1, (2, 600)).clip(-1, 1), 8000)
    rows = [
        {"step": 1, "train": 3.0, "rate": 0.1},
        {"step": 2, "train": 2.0, "rate": 0.05},
        {"step": 2, "validation": 2.1},
    ]
    save_curves(tmp_path / "c.png", rows, 2.5, "baseline")
    save_curves(tmp_path / "e.png", [row | {"evaluations": 20} for row in rows], 2.5, "baseline")
    for name in ("w.png", "c.png", "e.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 300
